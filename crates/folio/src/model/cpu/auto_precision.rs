//! The precision that `auto` means on this processor.

use folio_kernels::isa::Isa;
use folio_kernels::peak::bf16_speedup;

use crate::model::{ModelConfig, Precision, PrecisionChoice};

/// The precision of a model. `Auto` takes bf16 if the processor multiplies it faster than f32, which is measured once per
/// process, and the model can be computed in it.
pub fn resolve_precision(choice: PrecisionChoice, config: &ModelConfig) -> Precision {
    match choice {
        PrecisionChoice::F32 => Precision::F32,
        PrecisionChoice::Bf16 => Precision::Bf16,
        PrecisionChoice::Auto if bf16_speedup() > 1.0 && config.odd_size().is_none() => Precision::Bf16,
        PrecisionChoice::Auto => Precision::F32,
    }
}

/// Why [`resolve_precision`] chooses as it does for `Auto`; `None` for a precision that was given.
///
/// ```
/// use folio::model::{ModelConfig, PrecisionChoice, precision_reason};
/// assert_eq!(precision_reason(PrecisionChoice::F32, &ModelConfig::GPT2), None);
/// assert!(precision_reason(PrecisionChoice::Auto, &ModelConfig::GPT2).is_some());
/// ```
pub fn precision_reason(choice: PrecisionChoice, config: &ModelConfig) -> Option<String> {
    if choice != PrecisionChoice::Auto {
        return None;
    }
    let (precision, isa) = (resolve_precision(choice, config).name(), Isa::detected());
    Some(if !isa.multiplies_bf16() {
        format!("{precision}: the instruction set in use ({}) has no bf16 arithmetic", isa.name())
    } else if let Some(odd) = config.odd_size() {
        format!("{precision}: bf16 needs {odd}")
    } else {
        let speedup = bf16_speedup();
        format!("{precision}: {} multiplies bf16 at {speedup:.1} times the speed of f32", isa.name())
    })
}
