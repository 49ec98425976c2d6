//! Random inputs, runs on every instruction set, and comparisons with a twin.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use folio_kernels::buffer::Buffer;
use folio_kernels::element::Element;
use folio_kernels::isa::Isa;
use folio_kernels::panels::PanelDims;

/// The unit roundoff of f32: the maximum relative error of one operation.
pub(crate) const U: f64 = f32::EPSILON as f64 / 2.0;

/// The roundings of `vector::exp`: its documented relative error, 2 eps = 4 U.
pub(crate) const EXP_ROUNDINGS: f64 = 4.0;

/// The roundings of `vector::scaled_normal_tail`: its documented relative error, 3 eps = 6 U.
pub(crate) const TAIL_ROUNDINGS: f64 = 6.0;

/// The roundings of `f32::ln`, which C libraries compute to within one ulp: eps = 2 U.
pub(crate) const LN_ROUNDINGS: f64 = 2.0;

/// The smallest normal number, the same in f32 and bfloat16. Smaller numbers have an absolute error instead of a
/// relative one, and the dot products of AVX512-BF16 and BFMMLA flush them to zero.
pub(crate) const TINY: f64 = f32::MIN_POSITIVE as f64;

/// Tolerances are sums of relative errors, but errors multiply. The factors `1 + error` are at most
/// `exp(sum) - 1 <= sum (1 + sum)`, and no sum of f32 errors here exceeds 3e-3, so one percent covers the difference.
/// [`stored`] multiplies the errors of bfloat16 with the others.
const SECOND_ORDER: f64 = 1.01;

/// The relative error of storing a sum, which is f32, in the format `E`; zero for f32.
pub(crate) fn storing<E: Element>() -> f64 {
    if E::PER_UNIT == 1 { 0.0 } else { f64::from(E::UNIT_ROUNDOFF) }
}

/// The roundings that a term of a sum passes, in multiples of U: `others`, or more with ARM's BFMMLA in bfloat16. It adds the two products of
/// a unit, then adds that to the sum, and each addition rounds to odd, which is off by up to 2 U. A term passes one addition in its unit and one
/// for each unit. `terms` products in `segments` segments have at most (`terms` + `segments`) / 2 units.
pub(crate) fn roundings<E: Element>(others: usize, terms: usize, segments: usize) -> usize {
    let is_arm = cfg!(target_arch = "aarch64") && E::PER_UNIT == 2;
    if is_arm { others.max(terms + segments + 2) } else { others }
}

/// The error of a number of size `size` and error `off` after storing it in the format `E`.
pub(crate) fn stored<E: Element>(size: f64, off: f64) -> f64 {
    off + storing::<E>() * (size.abs() + off)
}

/// The expected output of a kernel.
pub(crate) struct Expected {
    /// The name of the output in the kernel's signature.
    pub(crate) name: &'static str,
    /// The output of the naive twin, in f64.
    pub(crate) want: Vec<f64>,
    /// The tolerance of each element; zero requires equality.
    pub(crate) tolerance: Vec<f64>,
}

impl Expected {
    /// An output whose terms each pass through at most `roundings` operations. Its error is at most `roundings U` times
    /// the sum of the terms' sizes (Higham 2002, "Accuracy and Stability", lemma 3.1). `sizes` is that sum: the output
    /// of the twin for absolute values.
    pub(crate) fn from_sizes(name: &'static str, roundings: usize, want: Vec<f64>, sizes: Vec<f64>) -> Self {
        let tolerance = sizes.iter().map(|size| roundings as f64 * U * size).collect();
        Self { name, want, tolerance }
    }

    /// The same after storing it in the format `E`.
    pub(crate) fn stored<E: Element>(mut self) -> Self {
        for (tolerance, want) in self.tolerance.iter_mut().zip(&self.want) {
            *tolerance = stored::<E>(*want, *tolerance);
        }
        self
    }

    /// Panics with the worst element unless all are within their tolerances.
    pub(crate) fn compare(&self, case: &str, got: &[f32]) {
        let Self { name, want, tolerance } = self;
        assert_eq!((got.len(), tolerance.len()), (want.len(), want.len()), "{case}: length of {name}");
        let excess = |i: usize| {
            let error = (f64::from(got[i]) - want[i]).abs();
            assert!(tolerance[i].is_finite(), "{case}: tolerance of {name}[{i}]");
            let excess = if error == 0.0 { 0.0 } else { error / (SECOND_ORDER * tolerance[i]) };
            if excess.is_nan() { f64::INFINITY } else { excess }
        };
        let worst = (0..want.len()).map(|i| (excess(i), i)).max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((excess, i)) = worst {
            assert!(
                excess <= 1.0,
                "{case}: {name} is worst at index {i} of {}: got {:e}, want {:e}, tolerance {:e}, \
                 exceeded {excess:.2} times",
                want.len(),
                got[i],
                want[i],
                tolerance[i],
            );
        }
    }
}

/// Compares the outputs of `run` with `expected`, in this order, on every instruction set.
pub(crate) fn check(op: &str, shape: &dyn Debug, expected: &[Expected], run: impl Fn() -> Vec<Vec<f32>>) {
    on_every_isa(|isa| {
        let got = run();
        assert_eq!(got.len(), expected.len(), "{op}: number of outputs");
        let case = format!("{op} {shape:?} on {}", isa.name());
        expected.iter().zip(&got).for_each(|(expected, got)| expected.compare(&case, got));
    });
}

/// Calls `body` once per instruction set, with all kernels using that set. The selection is global, so tests that use
/// this function run one at a time.
pub(crate) fn on_every_isa(mut body: impl FnMut(Isa)) {
    static TURN: Mutex<()> = Mutex::new(());
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            Isa::force(None);
        }
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let _restore = Restore;
    for isa in Isa::available() {
        Isa::force(Some(isa));
        assert_eq!(Isa::detected(), isa);
        body(isa);
    }
}

/// Panics unless both have the same bits.
#[track_caller]
pub(crate) fn assert_same_bits<E: Element>(case: &str, got: &[E], want: &[E]) {
    assert_eq!(got.len(), want.len(), "{case}: length");
    if let Some(i) = (0..want.len()).find(|&i| got[i].to_bits() != want[i].to_bits()) {
        panic!("{case}: element {i} of {} is {:?} and not {:?}", want.len(), got[i], want[i]);
    }
}

/// The number of additions that a term of `vector::sum_by` passes through: one per 32 elements, then five to reduce the
/// 32 lanes.
pub(crate) fn sum_depth(len: usize) -> f64 {
    (len.div_ceil(32) + 5) as f64
}

/// The name of a number format.
pub(crate) fn format<E: Element>() -> &'static str {
    if E::PER_UNIT == 1 { "f32" } else { "bf16" }
}

/// `x` in f64.
pub(crate) fn wide<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// The absolute values of `x`, in f64.
pub(crate) fn sizes<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.to_f32().abs())).collect()
}

/// `x` in f32.
pub(crate) fn as_f32<E: Element>(x: &[E]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// `x` rounded to the format `E`.
pub(crate) fn rounded<E: Element>(x: &[f32]) -> Vec<E> {
    x.iter().map(|&x| E::from_f32(x)).collect()
}

/// The initial contents of an output that will be overwritten.
pub(crate) fn nans<E: Element>(len: usize) -> Vec<E> {
    vec![E::from_f32(f32::NAN); len]
}

/// The same, aligned to a cache line, so that non-temporal stores are possible.
pub(crate) fn aligned_nans<E: Element>(len: usize) -> Buffer<E> {
    let mut buffer = Buffer::zeroed(len);
    buffer.fill(E::from_f32(f32::NAN));
    buffer
}

/// The transpose of `matrix` (rows, cols).
pub(crate) fn transposed<N: Copy>(matrix: &[N], rows: usize, cols: usize) -> Vec<N> {
    (0..rows * cols).map(|i| matrix[(i % rows) * cols + i / rows]).collect()
}

/// `matrix` (depth, cols) in panels, following the definition of the layout, padded with zeros.
pub(crate) fn in_panels<E: Element>(dims: PanelDims, matrix: &[E]) -> Vec<E> {
    let PanelDims { depth, cols } = dims;
    assert_eq!(matrix.len(), depth * cols, "{dims:?}");
    let mut panels = vec![E::default(); cols.div_ceil(64) * depth.div_ceil(E::PER_UNIT) * 64 * E::PER_UNIT];
    for (i, &value) in matrix.iter().enumerate() {
        panels[place::<E>(dims, i / cols, i % cols)] = value;
    }
    panels
}

/// The matrix (depth, cols) in `panels`. Asserts that the padding is zero.
pub(crate) fn from_panels<E: Element>(case: &str, dims: PanelDims, panels: &[E]) -> Vec<E> {
    let PanelDims { depth, cols } = dims;
    let matrix: Vec<E> = (0..depth * cols).map(|i| panels[place::<E>(dims, i / cols, i % cols)]).collect();
    assert_same_bits(&format!("{case}: {dims:?} in panels"), panels, &in_panels(dims, &matrix));
    matrix
}

/// The index of the element (row, col) in panels of 64 columns.
fn place<E: Element>(dims: PanelDims, row: usize, col: usize) -> usize {
    let unit = col / 64 * dims.depth.div_ceil(E::PER_UNIT) + row / E::PER_UNIT;
    (unit * 64 + col % 64) * E::PER_UNIT + row % E::PER_UNIT
}

/// Random numbers for inputs, the same in every run: a 64-bit linear congruential generator with Knuth's multiplier.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The upper 32 bits of the next state; the lower bits are of poor quality.
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// `len` values, uniform in [-1, 1).
    pub(crate) fn values(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| f64::from(self.bits()) / 2_147_483_648.0 - 1.0).collect()
    }

    /// `len` values in f32, uniform in [-reach, reach].
    pub(crate) fn as_f32(&mut self, len: usize, reach: f32) -> Vec<f32> {
        self.values(len).iter().map(|&value| reach * value as f32).collect()
    }

    /// `len` values in the format `E`, uniform in [-reach, reach].
    pub(crate) fn elements<E: Element>(&mut self, len: usize, reach: f32) -> Vec<E> {
        rounded(&self.as_f32(len, reach))
    }

    /// `len` tokens below `vocab`.
    pub(crate) fn tokens(&mut self, len: usize, vocab: usize) -> Vec<u32> {
        (0..len).map(|_| self.bits() % vocab as u32).collect()
    }
}
