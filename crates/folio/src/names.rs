//! Enums whose variants have names: in flags, config files, JSON and messages.

use crate::error::{Error, Result};

/// An enum whose variants have names; implemented by [`named_enum!`](crate::named_enum).
pub trait Named: Copy + 'static {
    /// What the variants are, for messages: `schedule`.
    const WHAT: &'static str;
    /// All variants, in the order in which messages list them.
    const ALL: &'static [Self];

    /// The variant's name.
    fn name(self) -> &'static str;

    /// All names.
    fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|variant| variant.name()).collect()
    }

    /// The variant with this name.
    ///
    /// # Errors
    /// [`Error::UnknownName`] with the nearest name.
    fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.iter().copied().find(|variant| variant.name() == name);
        found.ok_or_else(|| Error::unknown_name(Self::WHAT, name, &Self::names()))
    }
}

/// Names the variants of an enum: [`Named`], `name()`, `Display`, `FromStr` and serde all use these names.
///
/// ```
/// #[derive(Clone, Copy, Debug, PartialEq)]
/// enum Fruit { Apple, BloodOrange }
/// folio::named_enum!(Fruit, "fruit", { Apple => "apple", BloodOrange => "blood_orange" });
///
/// assert_eq!("blood_orange".parse::<Fruit>().unwrap(), Fruit::BloodOrange);
/// assert_eq!(Fruit::Apple.to_string(), "apple");
/// let error = "aple".parse::<Fruit>().unwrap_err();
/// assert_eq!(error.to_string(), "unknown fruit 'aple' (did you mean 'apple'?): choose from apple, blood_orange");
/// ```
#[macro_export]
macro_rules! named_enum {
    ($type:ident, $what:literal, { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $crate::names::Named for $type {
            const WHAT: &'static str = $what;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn name(self) -> &'static str {
                self.name()
            }
        }

        #[allow(dead_code, unreachable_pub, reason = "the enum may be private, and printed only")]
        impl $type {
            /// The variant's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::error::Error;

            fn from_str(name: &str) -> $crate::error::Result<Self> {
                $crate::names::Named::from_name(name)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let name = <String as serde::Deserialize>::deserialize(deserializer)?;
                name.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
