//! The same bits from every number of threads, and from every instruction set: sums have a fixed number of
//! lanes, and products choose their instructions themselves. The sizes give each thread several pieces.

use folio_kernels::adamw;
use folio_kernels::dims::{AttentionDims, EmbeddingDims, LinearDims, RowDims};
use folio_kernels::dropout::Dropout;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::adamw::{LATER_STEP, Tensor};
use crate::attention::Attention;
use crate::cross_entropy::Logits;
use crate::dropout::Branch;
use crate::embedding::Tables;
use crate::gelu::Activation;
use crate::layernorm::Norm;
use crate::linear::{Head, Layer};
use crate::support::{Random, on_every_isa};

#[test]
fn a_linear_layer_gives_the_same_bits() {
    // Forward six pieces of 192 rows; the product of the weight gradient is divided by the product itself.
    let layer = Layer::random(LinearDims { rows: 1100, inputs: 130, outputs: 97 });
    check("linear", || layer.run());
}

#[test]
fn the_head_gives_the_same_bits() {
    let head = Head::random(LinearDims { rows: 301, inputs: 96, outputs: 1003 });
    check("head", || head.run());
}

#[test]
fn embedding_gives_the_same_bits() {
    let tables = Tables::random(EmbeddingDims { batch: 16, time: 257, channels: 65, vocab: 1001 });
    check("embedding", || tables.run());
}

#[test]
fn layernorm_gives_the_same_bits() {
    let norm = Norm::random(RowDims { rows: 5000, cols: 97 }, 0.0);
    check("layernorm", || norm.run());
}

#[test]
fn gelu_gives_the_same_bits() {
    let activation = Activation::random(300_003, 6.0);
    check("gelu", || activation.run());
}

#[test]
fn attention_gives_the_same_bits() {
    for dropout in [Dropout::none(), Dropout::new(0.2, 101)] {
        let dims = AttentionDims { batch: 7, time: 130, heads: 2, head_size: 24 };
        let attention = Attention::random(dims, dropout);
        check("attention", || attention.run());
    }
}

#[test]
fn dropout_gives_the_same_bits() {
    let branch = Branch::random(RowDims { rows: 3000, cols: 65 }, Dropout::new(0.3, 102));
    check("dropout", || branch.run());
}

#[test]
fn cross_entropy_gives_the_same_bits() {
    let logits = Logits::random(RowDims { rows: 210, cols: 1003 }, 0.0, 5.0);
    check("cross_entropy", || logits.run());
}

#[test]
fn an_optimizer_step_gives_the_same_bits() {
    let tensor = Tensor::random(1_000_003);
    check("adamw", || tensor.run(LATER_STEP));
}

#[test]
fn the_sum_of_squares_gives_the_same_bits() {
    // The f32 sums of chunks differ by more than the 29 bits that f64 has in addition: their order counts.
    let mut x = Random(103).singles(2_000_001, 1.0);
    let sizes = [1.0, 1e-5, 3e-5, 1e-4, 2e-5].into_iter().cycle();
    x.chunks_mut(1024).zip(sizes).for_each(|(x, size)| x.iter_mut().for_each(|x| *x *= size));
    check("sum_of_squares", || {
        let bits = adamw::sum_of_squares(&x).to_bits();
        vec![vec![f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)]]
    });
}

/// Panics unless `run` gives the same bits in pools of 1, 2 and 3 threads, on all instruction sets alike.
fn check(op: &str, run: impl Fn() -> Vec<Vec<f32>> + Sync) {
    let pools = [1, 2, 3].map(pool);
    let mut first: Option<Vec<Vec<f32>>> = None;
    on_every_isa(|isa| {
        for pool in &pools {
            let got = pool.install(&run);
            let first = first.get_or_insert_with(|| got.clone());
            for (output, (got, want)) in got.iter().zip(first.iter()).enumerate() {
                let differs = |i: &usize| got[*i].to_bits() != want[*i].to_bits();
                if let Some(i) = (0..want.len()).find(differs) {
                    panic!(
                        "{op}: element {i} of output {output} is {:e} on {} with {} threads, \
                         and was {:e} at first",
                        got[i],
                        isa.name(),
                        pool.current_num_threads(),
                        want[i],
                    );
                }
            }
        }
    });
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("a few threads")
}
