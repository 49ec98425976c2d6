//! Kernels give the same bits with every number of threads and on every instruction set. So does the gradient of a
//! weight, however the caller's threads divide its rows and segments.

use folio_kernels::adamw;
use folio_kernels::dims::EmbeddingDims;
use folio_kernels::element::{Bf16, Element};
use folio_kernels::linear::linear_backward_weight;
use folio_kernels::newton_schulz::{ITERATIONS, NewtonSchulz};
use folio_kernels::panels::Panels;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::adamw::{LATER_STEP, Tensor};
use crate::embedding::Tables;
use crate::linear::in_segments;
use crate::newton_schulz::Matrix;
use crate::support::{Random, assert_same_bits, format, on_every_isa};

#[test]
fn embedding_gives_the_same_bits() {
    let tables = Tables::random(EmbeddingDims { batch: 16, time: 257, channels: 65, vocab: 1001 });
    check("embedding", || tables.run());
}

#[test]
fn an_optimizer_step_gives_the_same_bits() {
    let tensor = Tensor::random(1_000_003);
    check("adamw", || tensor.run(LATER_STEP));
}

#[test]
fn newton_schulz_gives_the_same_bits() {
    for shape in [(300, 200), (200, 300)] {
        let matrix = Matrix::random(shape);
        let run = || matrix.run(&mut NewtonSchulz::<f32>::new(200, 300), ITERATIONS);
        // Instruction sets differ in the order of a matmul's sums.
        on_every_isa(|isa| {
            let [one, two, three] = [1, 2, 3].map(|threads| pool(threads).install(run));
            assert_same_bits(&format!("newton_schulz on {} with 2 threads", isa.name()), &two, &one);
            assert_same_bits(&format!("newton_schulz on {} with 3 threads", isa.name()), &three, &one);
        });
    }
}

#[test]
fn the_sum_of_squares_gives_the_same_bits() {
    // The f32 sums of chunks differ by more than the 29 extra bits of f64, so the order of additions affects the
    // result.
    let mut x = Random(103).as_f32(2_000_001, 1.0);
    let sizes = [1.0, 1e-5, 3e-5, 1e-4, 2e-5].into_iter().cycle();
    x.chunks_mut(1024).zip(sizes).for_each(|(x, size)| x.iter_mut().for_each(|x| *x *= size));
    check("sum_of_squares", || {
        let bits = adamw::sum_of_squares(&x).to_bits();
        vec![vec![f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)]]
    });
}

/// Panics unless `run` gives the same bits in pools of 1, 2 and 3 threads on all instruction sets.
fn check(op: &str, run: impl Fn() -> Vec<Vec<f32>> + Sync) {
    let pools = [1, 2, 3].map(pool);
    let mut first: Option<Vec<Vec<f32>>> = None;
    on_every_isa(|isa| {
        for pool in &pools {
            let got = pool.install(&run);
            let first = first.get_or_insert_with(|| got.clone());
            for (output, (got, want)) in got.iter().zip(first.iter()).enumerate() {
                let threads = pool.current_num_threads();
                let case = format!("{op}, output {output}, on {} with {threads} threads", isa.name());
                assert_same_bits(&case, got, want);
            }
        }
    });
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("a few threads")
}

/// The gradient of a weight from all rows and segments in one call, and from every division of them.
fn cut_a_weight_gradient<E: Element>(segments: usize, time: usize, inputs: usize, outputs: usize) {
    let mut random = Random(104);
    let x = random.elements::<E>(segments * time * inputs, 1.0);
    let dy = random.elements::<E>(segments * time * outputs, 1.0);
    let (x_dims, x_stride, x) = in_segments(segments, inputs, &x);
    let (dy_dims, dy_stride, dy) = in_segments(segments, outputs, &dy);
    let part = |first: usize, count: usize| {
        (
            Panels::segmented(x_dims, &x[first * x_stride..], count, x_stride),
            Panels::segmented(dy_dims, &dy[first * dy_stride..], count, dy_stride),
        )
    };
    // `rows` rows and `count` segments per call.
    let run = |rows: usize, count: usize| {
        let mut dw = vec![f32::NAN; inputs * outputs];
        for first_segment in (0..segments).step_by(count) {
            let (x, dy) = part(first_segment, count.min(segments - first_segment));
            for (piece, dw) in dw.chunks_mut(rows * outputs).enumerate() {
                let first = piece * rows;
                let range = first..first + dw.len() / outputs;
                linear_backward_weight(range, dw, x, dy, first_segment > 0);
            }
        }
        dw
    };
    on_every_isa(|isa| {
        let want = run(inputs, segments);
        for rows in [1, 2, 5, 6, 7, 12, 24, 63, 64, 65, inputs] {
            for count in [1, 2, 3, segments] {
                let case = format!(
                    "{rows} rows and {count} segments of {segments} * {time}, {} on {}",
                    format::<E>(),
                    isa.name()
                );
                assert_same_bits(&case, &run(rows, count), &want);
            }
        }
    });
}

#[test]
fn the_gradient_of_a_weight_does_not_depend_on_its_division() {
    // Segments that are short enough to be processed in groups, and long ones that are not; the last group is partial.
    for (segments, time) in [(7, 67), (5, 128), (4, 300), (9, 33), (3, 600)] {
        cut_a_weight_gradient::<f32>(segments, time, 71, 97);
        cut_a_weight_gradient::<Bf16>(segments, time, 71, 97);
    }
    cut_a_weight_gradient::<f32>(3, 64, 130, 20);
    cut_a_weight_gradient::<Bf16>(3, 64, 130, 20);
}
