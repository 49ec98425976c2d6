//! Newton–Schulz iterations.

use folio_kernels::element::{Bf16, Element};
use folio_kernels::newton_schulz::{COEFFICIENTS, Columns, ITERATIONS, NewtonSchulz};
use folio_kernels::reference;

use crate::support::{Expected, Random, U, check, format, on_every_isa, storing, wide};

/// Sides around tiles of 6, 32 and 64, strips of 16 and pieces of 96; (rows, cols).
const SHAPES: [(usize, usize); 14] = [
    (1, 1),
    (1, 7),
    (7, 1),
    (5, 3),
    (3, 5),
    (16, 16),
    (17, 33),
    (33, 17),
    (64, 65),
    (97, 100),
    (100, 97),
    (193, 12),
    (12, 193),
    (6, 6),
];

/// The largest singular value that an iteration leaves.
const LARGEST: f64 = 1.21;

/// Some columns of a random matrix.
pub(crate) struct Matrix {
    columns: Columns,
    values: Vec<f32>,
}

impl Matrix {
    pub(crate) fn random((rows, cols): (usize, usize)) -> Self {
        let columns = Columns { rows, cols, first: 5, stride: cols + 9 };
        Self { columns, values: Random(83).as_f32(rows * columns.stride, 1e-3) }
    }

    /// The values of its own columns.
    fn own<N: Copy>(&self, of: &[N]) -> Vec<N> {
        let Columns { cols, first, stride, .. } = self.columns;
        of.chunks_exact(stride).flat_map(|row| row[first..][..cols].to_vec()).collect()
    }

    /// X in the place of the matrix, and zeros around it.
    pub(crate) fn run<E: Element>(&self, buffers: &mut NewtonSchulz<E>, iterations: usize) -> Vec<f32> {
        buffers.orthogonalize(self.columns, iterations, |index| self.values[index]);
        let mut out = vec![0.0; self.values.len()];
        buffers.update(self.columns, &mut out, 0.0, -1.0);
        out
    }

    /// X and the error of its elements. In Frobenius norms, with n that of X, s its largest singular value, v the rounding of a
    /// stored value, and errors of a sum that grow as the root of its length (Higham 2002, section 4.2):
    ///
    /// - A: `(sqrt(L) U + v) n²`. The norm of A is at most s n.
    /// - B = b A + c A²: the error of A, `|b| + 2 c s²` times; the sums, `sqrt(S) U c (s n)²`; two roundings and v of a result of
    ///   at most `|b| s n + c s³ n`.
    /// - a X + B X: the error of B, s times; the sums, `sqrt(S) U` times the norms of B and X; two roundings and v of
    ///   a result of at most `(a + |b| s² + c s⁴) n`.
    /// - An error of X is multiplied by at most the largest slope of `a x + b x³ + c x⁵` up to s, which is at s or at 0.
    fn expected<E: Element>(&self, iterations: usize) -> Expected {
        let Columns { rows, cols, .. } = self.columns;
        let (short, long) = (self.columns.short() as f64, self.columns.long() as f64);
        let [a, b, c] = [COEFFICIENTS[0], COEFFICIENTS[1].abs(), COEFFICIENTS[2]];
        let v = storing::<E>();
        let slope = (a - 3.0 * b * LARGEST.powi(2) + 5.0 * c * LARGEST.powi(4)).max(a);
        let own = wide(&self.own(&self.values));
        // Norm, scale and product.
        let mut off = 3.0 * U + v;
        let mut x = own.clone();
        for iteration in 0..iterations {
            x.copy_from_slice(&own);
            reference::newton_schulz(rows, cols, &mut x, iteration);
            let n = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let s = if iteration == 0 { 1.0 } else { LARGEST };
            let of_a = (long.sqrt() * U + v) * n * n;
            let b_norm = b * s * n + c * s.powi(3) * n;
            let of_b = (b + 2.0 * c * s * s) * of_a
                + short.sqrt() * U * c * (s * n).powi(2)
                + (2.0 * U + v) * b_norm;
            let result = (a + b * s * s + c * s.powi(4)) * n;
            let of_x = s * of_b + short.sqrt() * U * b_norm * n + (2.0 * U + v) * result;
            off = slope * off + of_x;
        }
        x.copy_from_slice(&own);
        reference::newton_schulz(rows, cols, &mut x, iterations);
        Expected { name: "x", tolerance: vec![off; x.len()], want: x }
    }
}

#[test]
fn iterations_equal_their_twin() {
    // One iteration in bfloat16, since the bound grows by a factor of 4 with each.
    compare::<f32>(1);
    compare::<f32>(ITERATIONS);
    compare::<Bf16>(1);
}

fn compare<E: Element>(iterations: usize) {
    // The same buffers for all: those of an earlier matrix must not matter.
    let buffers = std::cell::RefCell::new(NewtonSchulz::<E>::new(100, 193));
    for shape in SHAPES {
        let matrix = Matrix::random(shape);
        let expected = matrix.expected::<E>(iterations);
        check("newton_schulz", &(shape, iterations, format::<E>()), &[expected], || {
            let all = matrix.run(&mut buffers.borrow_mut(), iterations);
            let own = matrix.own(&all);
            let around = all.iter().filter(|&&x| x != 0.0).count() <= own.len();
            assert!(around, "{shape:?}: other columns have changed");
            vec![own]
        });
    }
}

#[test]
fn singular_values_end_between_the_documented_bounds() {
    check_singular_values::<f32>();
    check_singular_values::<Bf16>();
}

/// The mean square of the singular values of wide matrices, none of whose values is small: the sum of the squares of X by S.
fn check_singular_values<E: Element>() {
    for shape in [(12, 193), (193, 12), (17, 100), (1, 7)] {
        let matrix = Matrix::random(shape);
        let short = shape.0.min(shape.1);
        let mut buffers = NewtonSchulz::<E>::new(short, 193);
        on_every_isa(|isa| {
            let squares: f64 = wide(&matrix.run(&mut buffers, ITERATIONS)).iter().map(|x| x * x).sum();
            let mean = squares / short as f64;
            // The last iteration's roundings of A, B and X, as above.
            let off = 20.0 * (storing::<E>() + 20.0 * U);
            let bounds = 0.68f64.powi(2) - off..LARGEST.powi(2) + off;
            assert!(
                bounds.contains(&mean),
                "{shape:?} in {} on {}: {mean} is outside {bounds:?}",
                format::<E>(),
                isa.name()
            );
        });
    }
}

#[test]
fn the_scale_of_a_matrix_does_not_matter_and_zeros_stay_zeros() {
    let mut buffers = NewtonSchulz::<f32>::new(17, 33);
    let matrix = |scale: f32| {
        let mut matrix = Matrix::random((17, 33));
        matrix.values.iter_mut().for_each(|value| *value *= scale);
        matrix
    };
    on_every_isa(|isa| {
        let want = matrix(1.0).run(&mut buffers, ITERATIONS);
        // Powers of 2 are exact.
        for exponent in [-60, -20, 20, 60] {
            let got = matrix(2f32.powi(exponent)).run(&mut buffers, ITERATIONS);
            assert_eq!(got, want, "2^{exponent} on {}", isa.name());
        }
        assert!(matrix(0.0).run(&mut buffers, ITERATIONS).iter().all(|&x| x == 0.0), "{}", isa.name());
    });
}

#[test]
fn an_update_decays_and_steps() {
    for shape in [(17, 33), (33, 17), (5, 5)] {
        let matrix = Matrix::random(shape);
        let mut buffers = NewtonSchulz::<f32>::new(17, 33);
        on_every_isa(|isa| {
            let x = matrix.run(&mut buffers, ITERATIONS);
            let before = Random(7).as_f32(matrix.values.len(), 1.0);
            let mut after = before.clone();
            let (decay, rate) = (0.25, 0.5);
            buffers.update(matrix.columns, &mut after, decay, rate);
            let columns = matrix.columns;
            for (index, (&before, &after)) in before.iter().zip(&after).enumerate() {
                let is_own =
                    (columns.first..columns.first + columns.cols).contains(&(index % columns.stride));
                let want = if is_own { before - (decay * before + rate * x[index]) } else { before };
                assert_eq!(after, want, "{shape:?} on {}, {index}", isa.name());
            }
        });
    }
}
