//! Matching in linear time for any pattern: from the end of the text to its beginning, evaluates each state of an automaton
//! once per character. Gives the same matches as backtracking, which is several times as fast for patterns that rarely
//! backtrack, such as all published ones.

use super::Item;
use super::class::CharClass;

/// A position in a pattern. States that it depends on at the same character come before it.
enum State<'p> {
    /// The end of the pattern.
    End,
    /// A character of a class, then the state `taken`. Otherwise the state `skipped`, if there is one; for possessive items
    /// only if the character is not in the class.
    Char { class: &'p CharClass, taken: usize, skipped: Option<usize>, possessive: bool },
    /// The first of these states that matches.
    FirstOf(Vec<usize>),
    /// Lookahead for a character of the class, or its negation, then the state `next`.
    Ahead { class: &'p CharClass, negative: bool, next: usize },
}

/// For each byte of a text, the end of the match that begins there; 0 if there is none.
pub(super) fn match_ends(alternatives: &[Vec<Item>], text: &str) -> Vec<usize> {
    let mut automaton = Automaton { states: vec![State::End] };
    let start = automaton.first_of(alternatives, 0, None);
    let mut ends = vec![0; text.len()];
    // For each state, the end of the match that begins at this character, and at the next one.
    let mut here = vec![None; automaton.states.len()];
    let mut after = here.clone();
    automaton.fill(text, text.len(), &after, &mut here);
    for (at, _) in text.char_indices().rev() {
        std::mem::swap(&mut here, &mut after);
        automaton.fill(text, at, &after, &mut here);
        ends[at] = here[start].unwrap_or(0);
    }
    ends
}

struct Automaton<'p> {
    states: Vec<State<'p>>,
}

impl<'p> Automaton<'p> {
    fn push(&mut self, state: State<'p>) -> usize {
        self.states.push(state);
        self.states.len() - 1
    }

    /// The start state of alternatives that are followed by `next`.
    fn first_of(&mut self, alternatives: &'p [Vec<Item>], next: usize, or_else: Option<usize>) -> usize {
        let mut firsts: Vec<usize> = Vec::new();
        for items in alternatives {
            let first = items.iter().rev().fold(next, |next, item| self.item(item, next));
            firsts.push(first);
        }
        firsts.extend(or_else);
        self.push(State::FirstOf(firsts))
    }

    /// The start state of an item that is followed by `next`.
    fn item(&mut self, item: &'p Item, next: usize) -> usize {
        match item {
            Item::Run { class, min, max, possessive } => {
                let (skipped, possessive) = (Some(next), *possessive);
                let mut first = next;
                if *max == usize::MAX {
                    let taken = self.states.len();
                    first = self.push(State::Char { class, taken, skipped, possessive });
                } else {
                    for _ in *min..*max {
                        first = self.push(State::Char { class, taken: first, skipped, possessive });
                    }
                }
                for _ in 0..*min {
                    let taken = first;
                    first = self.push(State::Char { class, taken, skipped: None, possessive: false });
                }
                first
            }
            Item::Group { alternatives, optional } => {
                self.first_of(alternatives, next, optional.then_some(next))
            }
            Item::Ahead { class, negative } => self.push(State::Ahead { class, negative: *negative, next }),
        }
    }

    /// Computes, for each state, the end of the match that begins at an offset.
    fn fill(&self, text: &str, at: usize, after: &[Option<usize>], here: &mut [Option<usize>]) {
        for (index, state) in self.states.iter().enumerate() {
            let found = match state {
                State::End => Some(at),
                State::Char { class, taken, skipped, possessive } => {
                    let is_there = class.len_at(text, at).is_some();
                    let found = if is_there { after[*taken] } else { None };
                    let may_skip = !(*possessive && is_there);
                    found.or_else(|| skipped.filter(|_| may_skip).and_then(|next| here[next]))
                }
                State::FirstOf(firsts) => firsts.iter().find_map(|&first| here[first]),
                State::Ahead { class, negative, next } => {
                    let holds = class.len_at(text, at).is_some() != *negative;
                    if holds { here[*next] } else { None }
                }
            };
            here[index] = found;
        }
    }
}
