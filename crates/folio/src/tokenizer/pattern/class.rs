//! Sets of characters.

use unicode_general_category::{GeneralCategory as Category, get_general_category};

/// The characters of some parts, or, if it is negated, all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CharClass {
    negated: bool,
    parts: Vec<ClassPart>,
    /// Which of ASCII are in it, a bit for each.
    ascii: u128,
}

/// A part of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClassPart {
    /// From the first to the last of these.
    Range(char, char),
    /// White space, or all but that.
    Space { negated: bool },
    /// Some general categories, or all others.
    Categories { categories: Vec<Category>, negated: bool },
}

impl ClassPart {
    fn contains(&self, c: char) -> bool {
        match self {
            Self::Range(first, last) => (*first..=*last).contains(&c),
            Self::Space { negated } => c.is_whitespace() != *negated,
            Self::Categories { categories, negated } => {
                categories.contains(&get_general_category(c)) != *negated
            }
        }
    }
}

impl CharClass {
    pub(super) fn new(negated: bool, parts: Vec<ClassPart>) -> Self {
        let mut class = Self { negated, parts, ascii: 0 };
        class.ascii = ('\0'..='\x7f').filter(|&c| class.decide(c)).map(|c| 1 << u32::from(c)).sum();
        class
    }

    fn decide(&self, c: char) -> bool {
        self.parts.iter().any(|part| part.contains(c)) != self.negated
    }

    /// The bytes of the character at an offset, if it is in the class.
    #[inline]
    pub(super) fn len_at(&self, text: &str, at: usize) -> Option<usize> {
        let &byte = text.as_bytes().get(at)?;
        if byte.is_ascii() {
            return (self.ascii >> byte & 1 == 1).then_some(1);
        }
        let c = text[at..].chars().next()?;
        self.decide(c).then(|| c.len_utf8())
    }
}

/// The general categories of a property's short name, as `L` or `Lu`.
pub(super) fn categories(name: &str) -> Option<&'static [Category]> {
    use Category as Is;
    Some(match name {
        "L" => &[
            Is::UppercaseLetter,
            Is::LowercaseLetter,
            Is::TitlecaseLetter,
            Is::ModifierLetter,
            Is::OtherLetter,
        ],
        "Lu" => &[Is::UppercaseLetter],
        "Ll" => &[Is::LowercaseLetter],
        "Lt" => &[Is::TitlecaseLetter],
        "Lm" => &[Is::ModifierLetter],
        "Lo" => &[Is::OtherLetter],
        "M" => &[Is::NonspacingMark, Is::SpacingMark, Is::EnclosingMark],
        "Mn" => &[Is::NonspacingMark],
        "Mc" => &[Is::SpacingMark],
        "Me" => &[Is::EnclosingMark],
        "N" => &[Is::DecimalNumber, Is::LetterNumber, Is::OtherNumber],
        "Nd" => &[Is::DecimalNumber],
        "Nl" => &[Is::LetterNumber],
        "No" => &[Is::OtherNumber],
        "P" => &[
            Is::ConnectorPunctuation,
            Is::DashPunctuation,
            Is::OpenPunctuation,
            Is::ClosePunctuation,
            Is::InitialPunctuation,
            Is::FinalPunctuation,
            Is::OtherPunctuation,
        ],
        "S" => &[Is::MathSymbol, Is::CurrencySymbol, Is::ModifierSymbol, Is::OtherSymbol],
        _ => return None,
    })
}
