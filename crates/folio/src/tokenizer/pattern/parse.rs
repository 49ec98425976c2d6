//! Reading a pattern. Errors complete "the pattern has ...".

use unicode_general_category::GeneralCategory;

use super::Item;
use super::class::{CharClass, ClassPart, categories};

/// What follows a repeated character in two of a row that some engines take for one letter: `(?i:ss)` matches `ß`.
const FOLDED_TOGETHER: [&str; 5] = ["ss", "ff", "fi", "fl", "st"];

/// The largest number in `{n,m}`.
const MOST: usize = 1000;

/// The largest pattern: its length in bytes, how deep its groups are nested, and how many characters and groups it has,
/// each as often as it is repeated at least. Published ones have up to 500 bytes. Matching a part needs a part of the stack.
const MOST_BYTES: usize = 4096;
const MOST_NESTED: usize = 32;
const MOST_PARTS: usize = 1000;

pub(super) fn parse(source: &str) -> Result<Vec<Vec<Item>>, String> {
    if source.len() > MOST_BYTES {
        return Err(format!("more than {MOST_BYTES} bytes"));
    }
    let mut parser = Parser { source, at: 0, ignores_case: false, nested: 0, parts: 0 };
    let alternatives = parser.alternatives()?;
    if parser.peek().is_some() {
        return Err(format!("a ')' too many at character {}", parser.place()));
    }
    if alternatives.iter().any(|items| items.iter().all(may_be_empty)) {
        return Err("an alternative that matches nothing at all".to_owned());
    }
    Ok(alternatives)
}

fn may_be_empty(item: &Item) -> bool {
    match item {
        Item::Run { min, .. } => *min == 0,
        Item::Ahead { .. } => true,
        Item::Group { alternatives, optional } => {
            *optional || alternatives.iter().any(|items| items.iter().all(may_be_empty))
        }
    }
}

struct Parser<'s> {
    source: &'s str,
    at: usize,
    ignores_case: bool,
    /// The groups that are open.
    nested: usize,
    /// The characters and groups so far.
    parts: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// The number of the next character, from 1 on.
    fn place(&self) -> usize {
        self.source[..self.at].chars().count() + 1
    }

    fn unknown<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("{what} at character {}", self.place()))
    }

    /// Alternatives up to a closing parenthesis or the end.
    fn alternatives(&mut self) -> Result<Vec<Vec<Item>>, String> {
        let mut all = vec![Vec::new()];
        loop {
            match self.peek() {
                None | Some(')') => break,
                Some('|') => {
                    self.next();
                    all.push(Vec::new());
                }
                Some(_) => {
                    let item = self.item()?;
                    self.parts += match item {
                        Item::Run { min, max: usize::MAX, .. } => min + 1,
                        Item::Run { max, .. } => max,
                        Item::Group { .. } | Item::Ahead { .. } => 1,
                    };
                    if self.parts > MOST_PARTS {
                        return Err(format!("more than {MOST_PARTS} characters and groups"));
                    }
                    all.last_mut().expect("never empty").push(item);
                }
            }
        }
        Ok(all)
    }

    fn item(&mut self) -> Result<Item, String> {
        if self.take("(?=") {
            return self.ahead(false);
        }
        if self.take("(?!") {
            return self.ahead(true);
        }
        if self.ignores_case && (self.rest().starts_with("(?:") || self.rest().starts_with("(?i:")) {
            // Letters on its two sides may be those of `FOLDED_TOGETHER`.
            return self.unknown("a group inside (?i:...)");
        }
        if self.take("(?:") {
            return self.group(false);
        }
        if self.take("(?i:") {
            return self.group(true);
        }
        match self.peek() {
            Some('(') => return self.unknown("a group other than (?:...), (?i:...), (?=...) and (?!...)"),
            Some(sign @ ('.' | '^' | '$')) => return self.unknown(&format!("a '{sign}'")),
            Some('*' | '+' | '?' | '{') => return self.unknown("a repetition of nothing"),
            _ => {}
        }
        if self.ignores_case {
            let two: String = self.rest().chars().take(2).flat_map(char::to_lowercase).collect();
            if FOLDED_TOGETHER.contains(&two.as_str()) {
                return self
                    .unknown(&format!("'{two}' in (?i:...), which some engines take for one letter,"));
            }
        }
        let class = self.class()?;
        self.repeated(class)
    }

    fn ahead(&mut self, negative: bool) -> Result<Item, String> {
        let class = self.class()?;
        if !self.take(")") {
            return self.unknown("a look-ahead of more than one character");
        }
        Ok(Item::Ahead { class, negative })
    }

    fn group(&mut self, ignores_case: bool) -> Result<Item, String> {
        if self.nested == MOST_NESTED {
            return self.unknown(&format!("more than {MOST_NESTED} groups inside each other"));
        }
        self.nested += 1;
        self.ignores_case = ignores_case;
        let alternatives = self.alternatives()?;
        // No group is inside one that ignores case.
        self.ignores_case = false;
        self.nested -= 1;
        if !self.take(")") {
            return self.unknown("a group without its ')'");
        }
        let optional = self.take("?");
        if matches!(self.peek(), Some('*' | '+' | '?' | '{')) {
            return self.unknown("a repeated group");
        }
        Ok(Item::Group { alternatives, optional })
    }

    /// A class with what says how often.
    fn repeated(&mut self, class: CharClass) -> Result<Item, String> {
        let (min, max) = match self.peek() {
            Some('?') => (0, 1),
            Some('*') => (0, usize::MAX),
            Some('+') => (1, usize::MAX),
            // Some engines read `s{1}s` as `ss`.
            Some('{') if self.ignores_case => return self.unknown("a '{' in (?i:...)"),
            Some('{') => {
                let (min, max) = self.bounds()?;
                if matches!(self.peek(), Some('*' | '+' | '?' | '{')) {
                    return self.unknown("a repetition of a repetition");
                }
                return Ok(Item::Run { class, min, max, possessive: false });
            }
            _ => return Ok(Item::Run { class, min: 1, max: 1, possessive: false }),
        };
        self.next();
        let possessive = self.take("+");
        match self.peek() {
            Some('?') => self.unknown("a lazy repetition"),
            Some('*' | '+' | '{') => self.unknown("a repetition of a repetition"),
            _ => Ok(Item::Run { class, min, max, possessive }),
        }
    }

    /// `{n}`, `{n,}` or `{n,m}`.
    fn bounds(&mut self) -> Result<(usize, usize), String> {
        let body = self.rest().strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(body, _)| body);
        let number = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?.filter(|&n| n <= MOST)
        };
        let bounds = body.and_then(|body| match body.split_once(',') {
            None => Some((number(body)?, number(body)?)),
            Some((min, "")) => Some((number(min)?, usize::MAX)),
            Some((min, max)) => Some((number(min)?, number(max)?)),
        });
        let Some((min, max)) = bounds.filter(|(min, max)| min <= max && *max > 0) else {
            return self.unknown("a '{' that is not {n}, {n,} or {n,m}");
        };
        self.at += body.map_or(0, str::len) + 2;
        Ok((min, max))
    }

    /// One character, an escape, or a class in brackets.
    fn class(&mut self) -> Result<CharClass, String> {
        if self.take("[") {
            return self.brackets();
        }
        if self.peek() == Some('\\') {
            let part = self.escape()?;
            return Ok(CharClass::new(false, self.folded(part)?));
        }
        match self.next() {
            None | Some('(' | ')' | '|' | ']' | '}' | '*' | '+' | '?' | '{' | '.' | '^' | '$') => {
                self.unknown("a sign that stands for no character before what is")
            }
            Some(c) => Ok(CharClass::new(false, self.folded(ClassPart::Range(c, c))?)),
        }
    }

    fn brackets(&mut self) -> Result<CharClass, String> {
        let negated = self.take("^");
        let mut parts = Vec::new();
        while !self.take("]") {
            if self.take("&&") {
                return self.unknown("an intersection before what is");
            }
            let part = match self.peek() {
                None => return self.unknown("a '[' without its ']', ending"),
                Some('[') => return self.unknown("a class inside a class"),
                Some('\\') => self.escape()?,
                Some(c) => {
                    self.next();
                    ClassPart::Range(c, c)
                }
            };
            let part = match part {
                // A hyphen before the bracket stands for itself.
                ClassPart::Range(first, _)
                    if self.rest().starts_with('-') && !self.rest().starts_with("-]") =>
                {
                    self.next();
                    let last = match self.peek() {
                        Some('\\') => self.escape()?,
                        Some(c) if c != '[' => {
                            self.next();
                            ClassPart::Range(c, c)
                        }
                        _ => return self.unknown("a range without an end"),
                    };
                    match last {
                        ClassPart::Range(last, _) if first <= last => ClassPart::Range(first, last),
                        _ => return self.unknown("a range that ends before it begins, or in no character,"),
                    }
                }
                part => part,
            };
            parts.extend(self.folded(part)?);
        }
        if parts.is_empty() {
            return self.unknown("an empty class");
        }
        Ok(CharClass::new(negated, parts))
    }

    /// What a backslash and what follows it stand for.
    fn escape(&mut self) -> Result<ClassPart, String> {
        self.next();
        let one = |c| Ok(ClassPart::Range(c, c));
        match self.peek() {
            Some('p' | 'P') => return self.property(),
            Some(c) if c.is_ascii_punctuation() || c == ' ' => {
                self.next();
                return one(c);
            }
            _ => {}
        }
        let part = match self.peek() {
            Some('r') => one('\r'),
            Some('n') => one('\n'),
            Some('t') => one('\t'),
            Some('v') => one('\x0b'),
            Some('f') => one('\x0c'),
            Some('s') => Ok(ClassPart::Space { negated: false }),
            Some('S') => Ok(ClassPart::Space { negated: true }),
            Some('d') => {
                Ok(ClassPart::Categories { categories: vec![GeneralCategory::DecimalNumber], negated: false })
            }
            Some(c) => return self.unknown(&format!("the escape '\\{c}'")),
            None => return self.unknown("a backslash before nothing"),
        };
        self.next();
        part
    }

    /// `\p{Name}` or `\P{Name}`.
    fn property(&mut self) -> Result<ClassPart, String> {
        let negated = self.peek() == Some('P');
        let body = self.rest()[1..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let Some((name, _)) = body else { return self.unknown("a property without braces") };
        let Some(categories) = categories(name) else {
            return self.unknown(&format!("the property '{name}', which is no general category,"));
        };
        self.at += name.len() + 3;
        Ok(ClassPart::Categories { categories: categories.to_vec(), negated })
    }

    /// A part with the other cases of its letters, if case does not matter here.
    fn folded(&self, part: ClassPart) -> Result<Vec<ClassPart>, String> {
        if !self.ignores_case {
            return Ok(vec![part]);
        }
        let ClassPart::Range(first, last) = part else {
            return self.unknown("a category in (?i:...) before what is");
        };
        if !first.is_ascii() || first != last {
            return self.unknown("a range or a letter outside of ASCII in (?i:...) before what is");
        }
        let one = |c| ClassPart::Range(c, c);
        let mut cases = vec![one(first.to_ascii_lowercase()), one(first.to_ascii_uppercase())];
        match first.to_ascii_lowercase() {
            's' => cases.push(one('\u{17f}')),  // The long s.
            'k' => cases.push(one('\u{212a}')), // The Kelvin sign.
            _ => {}
        }
        Ok(cases)
    }
}
