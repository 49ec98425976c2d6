//! 8-bit weights with one scale per column, for generation, which reads every weight for every token.
//!
//! ```text
//! w[k][n] = scale[n] q[k][n],  scale[n] = max over k of |w[k][n]| / 127,    q = round(w / scale)
//! x[m][k] = scale[m] r[m][k],  scale[m] = max over k of |x[m][k]| / 16,256, r = round(x (16,256 / max)) = 128 high + low
//! y[m][n] = scale[m] scale[n] (128 sum over k of high q + sum over k of low q)
//! ```
//! Symmetric quantization, of weights per output channel and of inputs per row (Jacob et al. 2018, "Quantization and Training of
//! Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 2.1, with a zero point of 0). An input has 15 bits, in
//! two 8-bit integers: `high` within 127 and `low` within 64, because processors multiply 8-bit integers fastest. A row of numbers up to
//! 1e-30 counts as zeros. Both sums are exact, so a result has the same bits on every instruction set and however rows and columns are
//! divided.

use std::cell::Cell;
use std::ops::Range;

use crate::arch::generic;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{amx, avx2, avx512};
use crate::isa::Isa;
use crate::matmul::{Cost, Lhs, Prefetch, Rhs, TileRange};
use crate::operand::{PANEL_COLS, PanelDims};
use crate::vector::{ROUND, greatest_magnitude, sum_by};

/// Columns of a strip, whose weights are contiguous.
pub(crate) const STRIP_COLS: usize = 32;
/// Neighbors along the depth that are multiplied together.
pub(crate) const UNIT: usize = 4;
/// The depth is padded with zeros to a multiple of this: one step of AMX's tile registers, and one cache line of inputs.
pub(crate) const STEP: usize = 64;
/// Rows that are multiplied together.
pub(crate) const GROUP: usize = 16;
/// The largest quantized input: 128 * 127.
const LARGEST: f32 = 16_256.0;
/// The deepest matrix whose sums fit into 32 bits: 127 * 127 * 2^17 is below 2^31.
pub const MAX_DEPTH: usize = 1 << 17;

/// One unit of a strip: [`UNIT`] weights of each column.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct StripUnit(pub(crate) [[i8; UNIT]; STRIP_COLS]);

/// [`STEP`] neighbors of a row.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct InputStep(pub(crate) [i8; STEP]);

/// The sums of the high and of the low parts of up to [`GROUP`] rows, for the columns of a strip.
#[repr(C, align(64))]
pub(crate) struct IntegerSums {
    pub(crate) high: [[i32; STRIP_COLS]; GROUP],
    pub(crate) low: [[i32; STRIP_COLS]; GROUP],
}

/// A matrix (depth, cols) of 8-bit integers, with one scale per column.
#[derive(Clone, Debug)]
pub struct Quantized {
    dims: PanelDims,
    /// (strips, units), padded with zeros to whole steps and strips.
    data: Vec<StripUnit>,
    /// (cols rounded up to whole panels)
    scales: Vec<f32>,
    /// (cols rounded up to whole panels): the sum of each column's integers.
    totals: Vec<i32>,
}

impl Quantized {
    /// Quantizes the matrix whose element (k, n) is `w(k, n)`.
    ///
    /// # Panics
    /// If the depth is more than [`MAX_DEPTH`].
    pub fn new(dims: PanelDims, w: impl Fn(usize, usize) -> f32) -> Self {
        let PanelDims { depth, cols } = dims;
        assert!(depth <= MAX_DEPTH, "the sums of {depth} integers may not fit into 32 bits");
        let (padded, units) = (dims.panels() * PANEL_COLS, units_of(depth));
        let mut data = vec![StripUnit([[0; UNIT]; STRIP_COLS]); cols.div_ceil(STRIP_COLS) * units];
        let (mut scales, mut totals) = (vec![0.0f32; padded], vec![0i32; padded]);
        // Strip by strip, so that the accesses stay local whether `w` is stored by rows or by columns.
        for strip in 0..cols.div_ceil(STRIP_COLS) {
            let columns = strip * STRIP_COLS..((strip + 1) * STRIP_COLS).min(cols);
            let data = &mut data[strip * units..][..units];
            for k in 0..depth {
                for n in columns.clone() {
                    scales[n] = scales[n].max(w(k, n).abs() / 127.0);
                }
            }
            for k in 0..depth {
                for (c, n) in columns.clone().enumerate() {
                    // The cast saturates and converts NaN, from 0 / 0 in a column of zeros, to 0.
                    let q = (w(k, n) / scales[n]).round_ties_even() as i8;
                    data[k / UNIT].0[c][k % UNIT] = q;
                    totals[n] += i32::from(q);
                }
            }
        }
        Self { dims, data, scales, totals }
    }

    /// The matrix as a right operand.
    pub fn view(&self) -> QuantizedPanels<'_> {
        let Self { dims, data, scales, totals } = self;
        QuantizedPanels { data, scales, totals, depth: dims.depth, cols: dims.cols }
    }

    /// Bytes that a matmul reads. Of the instruction sets, only VNNI needs the totals.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.data) + size_of_val(&*self.scales) + size_of_val(&*self.totals)
    }
}

/// Units of a depth, padded to whole steps.
fn units_of(depth: usize) -> usize {
    depth.next_multiple_of(STEP) / UNIT
}

/// A view of a [`Quantized`] matrix.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedPanels<'a> {
    data: &'a [StripUnit],
    scales: &'a [f32],
    totals: &'a [i32],
    depth: usize,
    cols: usize,
}

impl Rhs<f32> for QuantizedPanels<'_> {
    fn columns(self, range: Range<usize>) -> Self {
        assert!(
            range.start.is_multiple_of(PANEL_COLS) && range.end <= self.cols,
            "columns {range:?} must start at a multiple of {PANEL_COLS} and end by {}",
            self.cols
        );
        let data = &self.data[range.start / STRIP_COLS * units_of(self.depth)..];
        let (scales, totals) = (&self.scales[range.start..], &self.totals[range.start..]);
        Self { data, scales, totals, cols: range.len(), ..self }
    }

    #[inline(always)]
    fn matmul_with<const N: usize>(
        self,
        isa: Isa,
        rows: Range<usize>,
        lhs: Lhs<f32>,
        prefetches: [Prefetch; N],
        _cost: Cost,
        mut epilogue: impl FnMut(TileRange, &mut [[f32; PANEL_COLS]]),
    ) {
        let Lhs::Rows { data, stride } = lhs else {
            panic!("a quantized right operand needs a row-major left operand")
        };
        if rows.is_empty() {
            return;
        }
        // Taken out, because a closure that the standard library calls would not be compiled for the instruction set.
        let mut inputs = INPUTS.take();
        inputs.quantize(rows.clone().map(
            #[inline(always)]
            |row| &data[row * stride..][..self.depth],
        ));
        let kernel = Kernel::new(isa, rows.len());
        let mut sums = IntegerSums { high: [[0; STRIP_COLS]; GROUP], low: [[0; STRIP_COLS]; GROUP] };
        let mut tile = [[0.0; PANEL_COLS]; GROUP];
        for col in (0..self.cols).step_by(PANEL_COLS) {
            for first in (0..rows.len()).step_by(GROUP) {
                let (count, cols) = ((rows.len() - first).min(GROUP), (self.cols - col).min(PANEL_COLS));
                let at = TileRange { row: rows.start + first, col, rows: count, cols };
                prefetches.iter().for_each(|prefetch| prefetch.tile(at));
                for strip in col / STRIP_COLS..(col + cols).div_ceil(STRIP_COLS) {
                    self.multiply(&kernel, inputs.rows(first, count), strip, &mut sums);
                    let place = strip * STRIP_COLS - col;
                    let scales = &self.scales[strip * STRIP_COLS..][..STRIP_COLS];
                    for (r, row) in tile[..count].iter_mut().enumerate() {
                        let row = &mut row[place..][..STRIP_COLS];
                        scale(row, &sums.high[r], &sums.low[r], inputs.scales[first + r], scales);
                    }
                }
                epilogue(at, &mut tile[..count]);
            }
        }
        INPUTS.set(inputs);
    }
}

impl QuantizedPanels<'_> {
    /// The sums of some rows for one strip. Those of other rows are meaningless.
    #[inline(always)]
    fn multiply(self, kernel: &Kernel, rows: InputRows, strip: usize, sums: &mut IntegerSums) {
        let units = units_of(self.depth);
        let weights = &self.data[strip * units..][..units];
        match kernel {
            // SAFETY: an `Isa` proves that the processor has it, and `Kernel::new` checked the rest; `Inputs::rows` and `weights`
            // have the same number of units, and with AMX there are rows for the whole configuration.
            #[cfg(target_arch = "x86_64")]
            Kernel::Amx(_) => unsafe { amx::multiply_int8(sums, rows, weights) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => unsafe {
                avx512::multiply_int8(sums, rows, weights, &self.totals[strip * STRIP_COLS..])
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => unsafe { avx2::multiply_int8(sums, rows, weights) },
            Kernel::Generic => generic::multiply_int8(sums, rows, weights),
        }
    }
}

/// `y = scale[m] scale[n] (128 high + low)`, for a row.
#[inline(always)]
fn scale(y: &mut [f32], high: &[i32; STRIP_COLS], low: &[i32; STRIP_COLS], row_scale: f32, scales: &[f32]) {
    for (((y, high), low), scale) in y.iter_mut().zip(high).zip(low).zip(scales) {
        *y = (*high as f32 * 128.0 + *low as f32) * (row_scale * scale);
    }
}

/// What multiplies 8-bit integers on this instruction set.
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Amx(#[expect(dead_code, reason = "restores the registers' configuration when it is dropped")] amx::Tiles),
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Generic,
}

impl Kernel {
    /// For `rows` rows in all.
    #[inline(always)]
    fn new(isa: Isa, rows: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if isa.has_amx_bf16() && amx::has_int8() {
                // SAFETY: an `Isa` proves that the process may use AMX.
                return Self::Amx(unsafe { amx::Tiles::configure_int8(rows) });
            }
            if isa.has_avx512() && is_x86_feature_detected!("avx512vnni") {
                return Self::Vnni;
            }
            if isa.has_avx2() {
                return Self::Avx2;
            }
        }
        let _ = (isa, rows);
        Self::Generic
    }
}

thread_local! {
    /// This thread's quantized inputs.
    static INPUTS: Cell<Inputs> = Cell::default();
}

/// Quantized rows.
#[derive(Default)]
struct Inputs {
    /// (rows, steps): the high and the low parts. If there is more than one group, the last one has room for all of its rows.
    high: Vec<InputStep>,
    low: Vec<InputStep>,
    /// (rows): what the integers of a row are multiplied with.
    scales: Vec<f32>,
    /// Steps of a row.
    steps: usize,
}

/// Up to [`GROUP`] quantized rows.
#[derive(Clone, Copy)]
pub(crate) struct InputRows<'a> {
    /// (rows, steps), and what is stored behind them.
    pub(crate) high: &'a [InputStep],
    pub(crate) low: &'a [InputStep],
    pub(crate) rows: usize,
    /// Steps of a row.
    pub(crate) steps: usize,
}

impl Inputs {
    /// Replaces the rows. There must be at least one; all must have the same length.
    #[inline(always)]
    fn quantize<'a>(&mut self, rows: impl ExactSizeIterator<Item = &'a [f32]>) {
        let count = if rows.len() > GROUP { rows.len().next_multiple_of(GROUP) } else { rows.len() };
        self.scales.clear();
        for (m, row) in (0..).zip(rows) {
            self.steps = row.len().div_ceil(STEP);
            for part in [&mut self.high, &mut self.low] {
                if part.len() < count * self.steps {
                    part.resize(count * self.steps, InputStep([0; STEP]));
                }
            }
            let place = m * self.steps..(m + 1) * self.steps;
            self.scales.push(quantize_row(row, &mut self.high[place.clone()], &mut self.low[place]));
        }
    }

    fn rows(&self, first: usize, count: usize) -> InputRows<'_> {
        let start = first * self.steps;
        InputRows { high: &self.high[start..], low: &self.low[start..], rows: count, steps: self.steps }
    }
}

/// Quantizes a row, padded with zeros, and returns its scale: NaN if the row contains a number that is not finite.
#[inline(always)]
fn quantize_row(row: &[f32], high: &mut [InputStep], low: &mut [InputStep]) -> f32 {
    /// Rows of smaller numbers count as zeros, because the inverse of their scale could overflow.
    const SMALLEST: f32 = 1e-30;
    let greatest = greatest_magnitude(row);
    let inverse = if greatest > SMALLEST { LARGEST / greatest } else { 0.0 };
    for ((x, high), low) in row.chunks(STEP).zip(high).zip(low) {
        let mut step = [0.0; STEP];
        step[..x.len()].copy_from_slice(x);
        for ((x, high), low) in step.iter().zip(&mut high.0).zip(&mut low.0) {
            let r = (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
            let upper = (r + 64) >> 7;
            *high = upper as i8;
            *low = (r - (upper << 7)) as i8;
        }
    }
    // The sum is 0 if all numbers are finite, and NaN otherwise.
    greatest / LARGEST + sum_by([row], |[x]| x * 0.0)
}
