//! The types of settings.

use crate::error::Result;

/// What the values of a setting are.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Switch,
    /// An integer from 0 up.
    Integer,
    /// A real number.
    Real,
    /// A name that the function accepts.
    Name(fn(&str) -> Result<()>),
    /// A path.
    Path,
    /// One or several paths.
    Files,
}
