//! The precision that `auto` means on this processor.

use folio_kernels::isa::Isa;
use folio_kernels::peak::bf16_speedup;

use crate::model::{Precision, PrecisionChoice};

/// The precision of a model of this width and number of heads. `Auto` takes bf16 if the processor multiplies it faster than
/// f32, which is measured once per process, and the heads are of even size.
pub fn resolve_precision(choice: PrecisionChoice, n_emb: usize, n_heads: usize) -> Precision {
    match choice {
        PrecisionChoice::F32 => Precision::F32,
        PrecisionChoice::Bf16 => Precision::Bf16,
        PrecisionChoice::Auto if bf16_speedup() > 1.0 && has_even_heads(n_emb, n_heads) => Precision::Bf16,
        PrecisionChoice::Auto => Precision::F32,
    }
}

/// Why [`resolve_precision`] chooses as it does for `Auto`; `None` for a precision that was given.
///
/// ```
/// use folio::model::{PrecisionChoice, precision_reason};
/// assert_eq!(precision_reason(PrecisionChoice::F32, 384, 6), None);
/// assert!(precision_reason(PrecisionChoice::Auto, 384, 6).is_some());
/// ```
pub fn precision_reason(choice: PrecisionChoice, n_emb: usize, n_heads: usize) -> Option<String> {
    if choice != PrecisionChoice::Auto {
        return None;
    }
    let (precision, isa) = (resolve_precision(choice, n_emb, n_heads).name(), Isa::detected());
    Some(if !isa.multiplies_bf16() {
        format!("{precision}: the instruction set in use ({}) has no bf16 arithmetic", isa.name())
    } else if !has_even_heads(n_emb, n_heads) {
        format!("{precision}: bf16 needs heads of even size, not {}", n_emb / n_heads.max(1))
    } else {
        let speedup = bf16_speedup();
        format!("{precision}: {} multiplies bf16 at {speedup:.1} times the speed of f32", isa.name())
    })
}

fn has_even_heads(n_emb: usize, n_heads: usize) -> bool {
    (n_emb / n_heads.max(1)).is_multiple_of(2)
}
