use fancy_regex::Regex;
use proptest::prelude::*;

use super::*;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const NANOCHAT: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// Everything that backtracks: groups inside groups, possessive runs, bounds, look-aheads.
const TWISTED: &str = r"(?:a+|ab)c?(?=b)|(?:(?:b|bc)?c{2,3})[a-c]|a*+b|c{2}(?!a)|[^a-c\s]{1,2}";

/// The parts that an independent engine finds.
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

#[track_caller]
fn check(pattern: &str, text: &str) {
    let found = Pattern::new(pattern).unwrap();
    let parts: Vec<_> = found.parts(text).map(|(part, is_match)| (part.to_owned(), is_match)).collect();
    assert_eq!(parts, parts_of_regex(pattern, text), "{pattern} in {text:?}");
}

proptest! {
    #[test]
    fn published_patterns_split_as_an_independent_engine_does(
        text in "(\\PC|[ \n\r\t'sdltvreSLKA-Z0-9/]|\\s|\\pL|\\pN|\\pM){0,40}",
        pattern in prop::sample::select(vec![GPT2, CL100K, O200K, NANOCHAT]),
    ) {
        check(pattern, &text);
    }

    #[test]
    fn patterns_backtrack_as_an_independent_engine_does(text in "[abc d]{0,24}") {
        check(TWISTED, &text);
    }
}

#[test]
fn long_runs_need_no_more_than_a_pass() {
    for run in [" ", "a", "A", "1", "\n", "!", "日"] {
        let text = run.repeat(200_000) + "x";
        for pattern in [GPT2, CL100K, O200K, NANOCHAT] {
            let parts = Pattern::new(pattern).unwrap();
            assert_eq!(parts.parts(&text).map(|(part, _)| part.len()).sum::<usize>(), text.len());
        }
    }
}

#[track_caller]
fn check_refused(pattern: &str, reason: &str) {
    let got = Pattern::new(pattern).unwrap_err();
    assert!(got.starts_with(reason), "{pattern}: {got}");
}

#[test]
fn what_engines_disagree_on_is_refused() {
    check_refused(r"\w+", r"the escape '\w' at character 2");
    check_refused(r"a|\bb", r"the escape '\b' at character 4");
    check_refused(r"\p{Han}+", "the property 'Han', which is no general category, at character 2");
    check_refused("a.", "a '.' at character 2");
    check_refused("a$", "a '$' at character 2");
    check_refused("(?i)a", "a group other than");
    check_refused("(a)", "a group other than");
    check_refused("(?<=a)b", "a group other than");
    check_refused("(?!ab)c", "a look-ahead of more than one character");
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
    check_refused("(?i:é)", "a range or a letter outside of ASCII");
    check_refused(r"(?i:\p{Lu})", "a category in (?i:...)");
    assert!(Pattern::literal("").is_err());
}

#[test]
fn literals_stand_for_themselves() {
    let parts: Vec<_> = Pattern::literal(".*").unwrap().parts("a.*b.").collect::<Vec<_>>();
    assert_eq!(parts, [("a", false), (".*", true), ("b.", false)]);
}
