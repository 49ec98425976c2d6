//! Where a text stops: nothing is told that a stop string may begin with.

/// The end of a text, held back as long as it may be the beginning of a stop string.
#[derive(Clone, Debug, Default)]
pub(super) struct Stops {
    stops: Vec<String>,
    held: String,
    /// Bytes at the head of `held` that are certain.
    certain: usize,
}

impl Stops {
    /// Stops before the first of these, none of which is empty.
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Takes what `add` appends. Returns whether the text ends; what it ends with is then certain.
    pub(super) fn push(&mut self, add: impl FnOnce(&mut String)) -> bool {
        self.held.drain(..self.certain);
        add(&mut self.held);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        if let Some(found) = found {
            self.held.truncate(found);
        }
        let uncertain = if found.is_some() { 0 } else { self.begun() };
        self.certain = self.held.len() - uncertain;
        found.is_some()
    }

    /// Takes the rest of the text; all of it is certain now.
    pub(super) fn end(&mut self, rest: &str) {
        self.held.push_str(rest);
        self.certain = self.held.len();
    }

    /// What became certain with the last call.
    pub(super) fn text(&self) -> &str {
        &self.held[..self.certain]
    }

    /// Bytes at the end that begin a stop string: of several such ends the longest.
    fn begun(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&len| held.ends_with(&stop.as_bytes()[..len])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told after each piece, and what at the end.
    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], told: &[&str], stopped: bool) {
        let mut text = Stops::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut ended = false;
        let mut got = Vec::new();
        for piece in pieces {
            assert!(!ended, "a piece after the end");
            ended = text.push(|held| held.push_str(piece));
            got.push(text.text().to_owned());
        }
        if !ended {
            text.end("");
            // What the last piece made certain is told with the end.
            *got.last_mut().expect("a piece") = text.text().to_owned();
        }
        assert_eq!((got.iter().map(String::as_str).collect::<Vec<_>>(), ended), (told.to_vec(), stopped));
    }

    #[test]
    fn nothing_of_a_stop_string_is_told() {
        check(&[], &["a", "bc"], &["a", "bc"], false);
        check(&["\n\n"], &["a\n", "b\n", "\nc"], &["a", "\nb", ""], true);
        check(&["\n\n"], &["a\n", "b"], &["a", "\nb"], false);
        check(&["\n\n"], &["a", "b\n"], &["a", "b\n"], false);
        check(&["END"], &["xE", "N", "EN", "D!"], &["x", "", "EN", ""], true);
        check(&["abc", "b"], &["xa", "bc"], &["x", ""], true);
        check(&["abc", "bd"], &["xa", "b", "d"], &["x", "", "a"], true);
        check(&["aab"], &["aa", "ab"], &["", "a"], true);
        check(&["bc", "abcd"], &["abcd"], &[""], true);
        check(&["été"], &["l'é", "t", "a"], &["l'", "", "éta"], false);
    }
}
