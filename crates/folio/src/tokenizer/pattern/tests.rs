use fancy_regex::Regex;
use proptest::prelude::*;

use super::*;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const NANOCHAT: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// Everything that backtracks: nested groups, possessive runs, bounds, lookaheads.
const TWISTED: &str = r"(?:a+|ab)c?(?=b)|(?:(?:b|bc)?c{2,3})[a-c]|a*+b|c{2}(?!a)|[^a-c\s]{1,2}";

/// The parts according to an independent engine.
fn parts_of_regex(pattern: &str, text: &str) -> Vec<(String, bool)> {
    let regex = Regex::new(pattern).unwrap();
    let (mut parts, mut done) = (Vec::new(), 0);
    for found in regex.find_iter(text) {
        let found = found.unwrap();
        if found.start() > done {
            parts.push((text[done..found.start()].to_owned(), false));
        }
        parts.push((found.as_str().to_owned(), true));
        done = found.end();
    }
    if done < text.len() {
        parts.push((text[done..].to_owned(), false));
    }
    parts
}

/// The parts according to matching without backtracking.
fn parts_without_backtracking(pattern: &Pattern, text: &str) -> Vec<(String, bool)> {
    let mut search = Search::new(pattern, text);
    search.backtracking.steps_left.set(0);
    let (mut parts, mut done) = (Vec::new(), 0);
    while let Some((start, end)) = search.next_match(done) {
        parts.extend((start > done).then(|| (text[done..start].to_owned(), false)));
        parts.push((text[start..end].to_owned(), true));
        done = end;
    }
    parts.extend((done < text.len()).then(|| (text[done..].to_owned(), false)));
    parts
}

#[track_caller]
fn check(pattern: &str, text: &str) {
    let found = Pattern::new(pattern).unwrap();
    let parts: Vec<_> = found.parts(text).map(|(part, is_match)| (part.to_owned(), is_match)).collect();
    assert_eq!(parts, parts_of_regex(pattern, text), "{pattern} in {text:?}");
    assert_eq!(parts_without_backtracking(&found, text), parts, "{pattern} in {text:?}");
}

proptest! {
    #[test]
    fn published_patterns_match_an_independent_engine(
        text in "(\\PC|[ \n\r\t'sdltvreSLKA-Z0-9/]|\\s|\\pL|\\pN|\\pM){0,40}",
        pattern in prop::sample::select(vec![GPT2, CL100K, O200K, NANOCHAT]),
    ) {
        check(pattern, &text);
    }

    #[test]
    fn backtracking_matches_an_independent_engine(text in "[abc d]{0,24}") {
        check(TWISTED, &text);
    }
}

/// Whether backtracking alone finds all matches.
fn backtracks_to_the_end(pattern: &str, text: &str) -> bool {
    let pattern = Pattern::new(pattern).unwrap();
    let (mut search, mut done) = (Search::new(&pattern, text), 0);
    while let Some((_, end)) = search.next_match(done) {
        done = end;
    }
    search.ends.is_none()
}

#[test]
fn long_runs_need_one_pass() {
    for run in [" ", "a", "A", "1", "\n", "!", "日", "! ", "日a", "'", "\t\n", "\u{301}"] {
        let text = run.repeat(50_000) + "x";
        for pattern in [GPT2, CL100K, O200K, NANOCHAT] {
            assert!(backtracks_to_the_end(pattern, &text), "{pattern} on many {run:?}");
        }
    }
}

#[test]
fn excessive_backtracking_is_stopped() {
    let text = "a".repeat(20_000);
    for pattern in [&*("(?:a|aa)".repeat(41) + "b"), "a*a*a*a*a*a*a*a*b", "a+b", r"(?:a?(?:a|b{0,9}))a*a*c"] {
        assert!(!backtracks_to_the_end(pattern, &text), "{pattern}");
        assert_eq!(Pattern::new(pattern).unwrap().parts(&text).collect::<Vec<_>>(), [(&*text, false)]);
        let short = "a".repeat(9) + "bb" + &"a".repeat(60) + "bca";
        check_without_regex(pattern, &short);
    }
    // Each match scans the rest of the text.
    let alone: Vec<_> = Pattern::new("a*b|a").unwrap().parts(&text).collect();
    assert_eq!(alone, vec![("a", true); text.len()]);
}

/// Checks that both ways of matching agree.
#[track_caller]
fn check_without_regex(pattern: &str, text: &str) {
    let pattern = Pattern::new(pattern).unwrap();
    let parts: Vec<_> = pattern.parts(text).map(|(part, is_match)| (part.to_owned(), is_match)).collect();
    assert_eq!(parts_without_backtracking(&pattern, text), parts);
}

#[test]
fn patterns_that_would_overflow_the_stack_are_refused() {
    let many = 200_000;
    check_refused(&("(?:".repeat(many) + "a" + &")".repeat(many)), "more than 4096 bytes");
    check_refused(&("a?".repeat(many) + "b"), "more than 4096 bytes");
    check_refused(&("(?:".repeat(33) + "a" + &")".repeat(33)), "more than 32 nested groups");
    check_refused(&("a?".repeat(1000) + "b"), "more than 1000 characters and groups");
    check_refused("a{1000}b", "more than 1000 characters and groups");
    // The largest allowed ones fit in the stack of a thread.
    let text = "a".repeat(999) + "b";
    let deep = "(?:".repeat(32) + "a" + &")".repeat(32);
    let wide = "(?:a?b?)?".repeat(300) + "b";
    for (pattern, matches) in [("a?".repeat(999) + "b", 1), (deep, 999), (wide, 1), ("a{1000}".to_owned(), 0)]
    {
        let pattern = Pattern::new(&pattern).unwrap();
        assert_eq!(pattern.parts(&text).filter(|(_, is_match)| *is_match).count(), matches);
    }
    let long = "ab".repeat(many);
    let literal = Pattern::literal(&long).unwrap();
    assert_eq!(literal.parts(&format!("{long}c")).collect::<Vec<_>>(), [(&*long, true), ("c", false)]);
}

#[track_caller]
fn check_refused(pattern: &str, reason: &str) {
    let got = Pattern::new(pattern).unwrap_err();
    assert!(got.starts_with(reason), "{pattern}: {got}");
}

#[test]
fn ambiguous_syntax_is_refused() {
    check_refused(r"\w+", r"the escape '\w' at character 2");
    check_refused(r"a|\bb", r"the escape '\b' at character 4");
    check_refused(r"\p{Han}+", "the property 'Han', which is not a general category, at character 2");
    check_refused("a.", "a '.' at character 2");
    check_refused("a$", "a '$' at character 2");
    check_refused("(?i)a", "a group other than");
    check_refused("(a)", "a group other than");
    check_refused("(?<=a)b", "a group other than");
    check_refused("(?!ab)c", "a lookahead of more than one character");
    check_refused("(?:ab)+", "a repeated group");
    check_refused("a+?", "a lazy repetition");
    check_refused("a{1,2}+", "a repetition of a repetition");
    check_refused("a{2,1}", "a '{' that is not");
    check_refused("a{0}", "a '{' that is not");
    check_refused("[a&&b]", "an intersection");
    check_refused("[[:alpha:]]", "a class inside a class");
    check_refused("[b-a]", "a range that ends before it begins");
    check_refused("[]", "an empty class");
    check_refused("[a", "a '[' without its ']'");
    check_refused("(?:a", "a group without its ')'");
    check_refused("a)", "a ')' too many");
    check_refused("a|b*", "an alternative that matches nothing");
    check_refused("", "an alternative that matches nothing");
    check_refused("(?i:ss)", "'ss' in (?i:...)");
    check_refused("(?i:(?:s)(?:s))", "a group inside (?i:...) at character 5");
    check_refused("(?i:s(?:s))", "a group inside (?i:...)");
    check_refused("(?i:s(?i:s))", "a group inside (?i:...)");
    check_refused("(?i:s{1}s)", "a '{' in (?i:...) at character 6");
    check_refused("(?i:é)", "a range or a letter outside of ASCII");
    check_refused(r"(?i:\p{Lu})", "a category in (?i:...)");
    assert!(Pattern::literal("").is_err());
}

#[test]
fn literals_match_themselves() {
    let parts: Vec<_> = Pattern::literal(".*").unwrap().parts("a.*b.").collect::<Vec<_>>();
    assert_eq!(parts, [("a", false), (".*", true), ("b.", false)]);
}
