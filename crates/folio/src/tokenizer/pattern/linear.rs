//! Matching in time that grows with the text's length alone, whatever the pattern: from the end of the text to its
//! beginning, each character with each state of an automaton once. Backtracking is several times as fast for patterns that
//! hardly backtrack, as all published ones, and finds the same.

use super::Item;
use super::class::CharClass;

/// A place in a pattern. States on which one depends at the same character come before it.
enum State<'p> {
    /// The end of the pattern.
    End,
    /// A character of a class, then the state `taken`. A state `skipped` is the second choice; if that is possessive, only
    /// where there is no such character.
    Char { class: &'p CharClass, taken: usize, skipped: Option<usize>, possessive: bool },
    /// The first of these that matches.
    FirstOf(Vec<usize>),
    /// The state `next`, if the next character is of the class, or not.
    Ahead { class: &'p CharClass, negative: bool, next: usize },
}

/// For each byte of a text where the match ends that begins there; 0 if there is none.
pub(super) fn match_ends(alternatives: &[Vec<Item>], text: &str) -> Vec<usize> {
    let mut automaton = Automaton { states: vec![State::End] };
    let start = automaton.first_of(alternatives, 0, None);
    let mut ends = vec![0; text.len()];
    // Where the match ends that begins in each state: at this character, and at the one after it.
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

    /// The state in which alternatives begin that `next` follows.
    fn first_of(&mut self, alternatives: &'p [Vec<Item>], next: usize, or_else: Option<usize>) -> usize {
        let mut firsts: Vec<usize> = Vec::new();
        for items in alternatives {
            let first = items.iter().rev().fold(next, |next, item| self.item(item, next));
            firsts.push(first);
        }
        firsts.extend(or_else);
        self.push(State::FirstOf(firsts))
    }

    /// The state in which an item begins that `next` follows.
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

    /// Overwrites where the matches end that begin in each state at an offset.
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
