//! What Muon updates, and by how much.

use folio_kernels::newton_schulz::Columns;

use super::ParameterSpec;

/// The root mean square of AdamW's updates that Muon's are scaled to.
const UPDATE_SIZE: f64 = 0.2;

/// One update of Muon: what is the same for all its matrices. With O the orthogonalized matrix of S and L rows and columns, S <= L:
///
/// ```text
/// m <- momentum m + (1 - momentum) g
/// O  = newton_schulz((1 - momentum) g + momentum m)
/// p <- p - lr (decay p + 0.2 sqrt(L) O)
/// ```
/// Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the decay and the scale are those of Liu et al.
/// 2025, "Muon is Scalable for LLM Training" (arXiv 2502.16982), section 2.2: the elements of O have a root mean square of
/// 1 / sqrt(L), and those of AdamW's updates one of 0.2 to 0.4, so that AdamW's learning rates serve both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MuonUpdate {
    /// lr.
    pub learning_rate: f64,
    /// Decay rate of m, which is stored in `exp_avg`.
    pub momentum: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Multiplies the gradients first: below 1 when they are clipped.
    pub gradient_scale: f64,
}

impl MuonUpdate {
    /// Whether Muon updates a parameter: the matrices of the blocks, but not embeddings and head, whose rows are the vectors of
    /// single tokens.
    pub fn updates(spec: &ParameterSpec) -> bool {
        spec.is_matrix() && spec.block().is_some()
    }

    /// The matrices that a parameter of Muon's consists of, each orthogonalized by itself: `c_attn` is those of queries, keys and
    /// values side by side. Their gradients differ in size by up to a thousand times, and as a single matrix the values would
    /// determine the directions of all. Jordan too takes the three separately.
    pub fn matrices(spec: &ParameterSpec) -> impl Iterator<Item = Columns> + use<> {
        let (rows, stride) = (spec.shape[0], spec.shape[1]);
        let cols = if spec.name.ends_with("attn.c_attn.weight") { stride / 3 } else { stride };
        (0..stride / cols).map(move |part| Columns { rows, cols, first: part * cols, stride })
    }

    /// The factor on O: `lr 0.2 sqrt(L)`.
    pub fn rate(&self, matrix: Columns) -> f64 {
        self.learning_rate * UPDATE_SIZE * (matrix.long() as f64).sqrt()
    }
}
