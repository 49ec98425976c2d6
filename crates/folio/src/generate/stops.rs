//! Stop strings. Text that may be the beginning of a stop string is held back.

/// Finds stop strings in a stream of text.
#[derive(Clone, Debug, Default)]
pub(super) struct Stops {
    stops: Vec<String>,
    held: String,
    /// Bytes at the start of `held` that cannot be part of a stop string.
    certain: usize,
}

impl Stops {
    /// Stops before the first of these strings, none of which may be empty.
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Appends text. Returns whether a stop string was found; the text before it is then released.
    pub(super) fn push(&mut self, add: impl FnOnce(&mut String)) -> bool {
        self.held.drain(..self.certain);
        add(&mut self.held);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        if let Some(found) = found {
            self.held.truncate(found);
        }
        let uncertain = if found.is_some() { 0 } else { self.partial_match_len() };
        self.certain = self.held.len() - uncertain;
        found.is_some()
    }

    /// Appends the rest of the text and releases all of it.
    pub(super) fn end(&mut self, rest: &str) {
        self.held.push_str(rest);
        self.certain = self.held.len();
    }

    /// The text that the last call released.
    pub(super) fn text(&self) -> &str {
        &self.held[..self.certain]
    }

    /// The length of the longest suffix that begins a stop string.
    fn partial_match_len(&self) -> usize {
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

    /// Checks the text released after each piece. The last piece is followed by the end of the text.
    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], want: &[&str], stopped: bool) {
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
            *got.last_mut().expect("a piece") = text.text().to_owned();
        }
        assert_eq!((got.iter().map(String::as_str).collect::<Vec<_>>(), ended), (want.to_vec(), stopped));
    }

    #[test]
    fn stop_strings_are_held_back() {
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
