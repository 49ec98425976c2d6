//! Embedding lookup and its gradients.

use folio_kernels::dims::EmbeddingDims;
use folio_kernels::{embedding, reference};

use crate::support::{Expected, Random, check, sizes, wide};

/// The backward pass divides the vocabulary into 32 parts.
const SIZES: [(usize, usize, usize, usize); 10] = [
    (1, 1, 1, 1),
    (1, 1, 7, 5),
    (1, 5, 3, 4),
    (3, 1, 2, 7),
    (2, 9, 16, 31),
    (2, 9, 17, 32),
    (3, 11, 33, 33),
    (4, 16, 65, 100),
    (2, 50, 5, 3),
    (3, 40, 6, 1000),
];

#[test]
fn embeddings_equal_their_twin() {
    for (batch, time, channels, vocab) in SIZES {
        let dims = EmbeddingDims { batch, time, channels, vocab };
        let table = Tables::random(dims);
        // y: a sum of two. dwte: at most all tokens, plus the initial value. dwpe: all sequences, plus the initial
        // value.
        let roundings = [1, batch * time, batch];
        let outputs = table.twin(wide).into_iter().zip(table.twin(sizes));
        let expected: Vec<_> = outputs
            .zip(["y", "dwte", "dwpe"].into_iter().zip(roundings))
            .map(|((want, sizes), (name, roundings))| Expected::from_sizes(name, roundings, want, sizes))
            .collect();
        check("embedding", &dims, &expected, || table.run());
    }
}

#[test]
fn gradients_of_unused_rows_are_unchanged() {
    let dims = EmbeddingDims { batch: 2, time: 3, channels: 4, vocab: 40 };
    let tokens = [7, 7, 39, 0, 7, 39];
    let mut dwte = vec![0.1; 40 * 4];
    let mut dwpe = vec![0.1; 5 * 4];
    embedding::embedding_backward(dims, &mut dwte, &mut dwpe, &[1.0; 24], &tokens);
    let untouched = |row: &[f32]| row == [0.1; 4];
    for (token, row) in dwte.chunks_exact(4).enumerate() {
        assert_eq!(untouched(row), !tokens.contains(&(token as u32)), "token {token}: {row:?}");
    }
    for (t, row) in dwpe.chunks_exact(4).enumerate() {
        assert_eq!(untouched(row), t >= 3, "position {t}: {row:?}");
    }
}

#[test]
#[should_panic(expected = "token 5 is outside the vocabulary of 5")]
fn a_token_outside_the_vocabulary_panics() {
    let dims = EmbeddingDims { batch: 1, time: 2, channels: 1, vocab: 5 };
    embedding::embedding_forward(dims, &mut [0.0; 2], &[0.0; 5], &[0.0; 2], &[4, 5]);
}

/// The two tables, with two more positions than the sequence has, and gradients with non-zero initial values.
pub(crate) struct Tables {
    dims: EmbeddingDims,
    wte: Vec<f32>,
    wpe: Vec<f32>,
    tokens: Vec<u32>,
    dy: Vec<f32>,
    dwte: Vec<f32>,
    dwpe: Vec<f32>,
}

impl Tables {
    pub(crate) fn random(dims: EmbeddingDims) -> Self {
        let EmbeddingDims { batch, time, channels, vocab } = dims;
        let mut random = Random(21);
        Self {
            dims,
            wte: random.as_f32(vocab * channels, 1.0),
            wpe: random.as_f32((time + 2) * channels, 1.0),
            tokens: random.tokens(batch * time, vocab),
            dy: random.as_f32(batch * time * channels, 1.0),
            dwte: random.as_f32(vocab * channels, 1.0),
            dwpe: random.as_f32((time + 2) * channels, 1.0),
        }
    }

    /// `y`, `dwte` and `dwpe`.
    pub(crate) fn run(&self) -> Vec<Vec<f32>> {
        let Self { dims, wte, wpe, tokens, dy, .. } = self;
        let mut y = vec![f32::NAN; dy.len()];
        embedding::embedding_forward(*dims, &mut y, wte, wpe, tokens);
        let (mut dwte, mut dwpe) = (self.dwte.clone(), self.dwpe.clone());
        embedding::embedding_backward(*dims, &mut dwte, &mut dwpe, dy, tokens);
        vec![y, dwte, dwpe]
    }

    /// The same from the twin, with every input converted by `of`.
    fn twin(&self, of: impl Fn(&[f32]) -> Vec<f64>) -> Vec<Vec<f64>> {
        let dims = self.dims;
        let (wte, wpe, dy) = (of(&self.wte), of(&self.wpe), of(&self.dy));
        let mut y = vec![f64::NAN; dy.len()];
        reference::embedding_forward(dims, &mut y, &wte, &wpe, &self.tokens);
        let (mut dwte, mut dwpe) = (of(&self.dwte), of(&self.dwpe));
        reference::embedding_backward(dims, &mut dwte, &mut dwpe, &dy, &self.tokens);
        vec![y, dwte, dwpe]
    }
}
