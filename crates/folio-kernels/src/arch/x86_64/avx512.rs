//! AVX-512: registers of 16 f32, and AVX512-BF16's dot product of pairs of bfloat16.

#![expect(clippy::needless_range_loop, reason = "loops over registers, unrolled by their constant bounds")]

use std::arch::x86_64::*;
use std::array::from_fn;

use crate::prefetch::{CACHE_LINE, INT8_PREFETCH_AHEAD, PrefetchHint, prefetch};
use crate::quantized::{InputRows, IntegerSums, STRIP_COLS, StripUnit, UNIT};
use crate::tile::{COLS, ROWS, Sums, Walk};

/// Runs `body` compiled for AVX-512.
///
/// # Safety
/// The processor must have AVX-512 F, BW, DQ and VL, and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// Runs `body` compiled for AVX-512 with BF16.
///
/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL and BF16, and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn run_bf16<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// The fewest rows for which the right operand is prefetched by software. With fewer, the processor's out-of-order
/// window reaches far enough ahead to keep the memory busy; with more, the arithmetic fills it.
const MIN_ROWS_TO_PREFETCH: usize = 3;
/// How far ahead the right operand is prefetched, in elements: 32 units, 8 KiB. Measurements: docs/experiments.md.
const PREFETCH_AHEAD: usize = 32 * COLS;
/// f32 elements per register, and the side of a square that [`transpose`] transposes.
pub(crate) const LANES: usize = 16;

/// `sums = lhs rhs` or `sums += lhs rhs` in f32.
///
/// # Safety
/// The contract of [`Walk`] must hold; the processor must have AVX-512 F.
#[target_feature(enable = "avx512f,fma")]
pub(crate) unsafe fn multiply_f32<const R: usize>(
    sums: Sums,
    lhs: [*const f32; ROWS],
    rhs: *const f32,
    walk: &Walk,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        vectors::<R>(sums, lhs, rhs, walk, |sum, a, b| _mm512_fmadd_ps(a, b, sum));
    }
}

/// `sums = lhs rhs` or `sums += lhs rhs` in bfloat16.
///
/// # Safety
/// The contract of [`Walk`] must hold; the processor must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16,fma")]
pub(crate) unsafe fn multiply_bf16<const R: usize>(
    sums: Sums,
    lhs: [*const f32; ROWS],
    rhs: *const f32,
    walk: &Walk,
) {
    // SAFETY: guaranteed by the caller; the two register types have the same size.
    unsafe {
        let pairs = |units| std::mem::transmute::<__m512, __m512bh>(units);
        vectors::<R>(sums, lhs, rhs, walk, |sum, a, b| _mm512_dpbf16_ps(sum, pairs(a), pairs(b)));
    }
}

/// Selects [`fixed`] for the number of registers per row.
///
/// # Safety
/// The contract of [`Walk`] must hold; the caller must be compiled for AVX-512 F and the features that `multiply_add`
/// needs.
#[inline(always)]
unsafe fn vectors<const R: usize>(
    sums: Sums,
    lhs: [*const f32; ROWS],
    rhs: *const f32,
    walk: &Walk,
    multiply_add: impl Fn(__m512, __m512, __m512) -> __m512 + Copy,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let load = |unit: usize, col: usize| {
            if R >= MIN_ROWS_TO_PREFETCH {
                prefetch(rhs.wrapping_add(unit + col + PREFETCH_AHEAD).cast(), PrefetchHint::Read);
            }
            _mm512_loadu_ps(rhs.add(unit + col))
        };
        match walk.cols.div_ceil(16) {
            1 => fixed::<R, 1>(sums, lhs, load, walk, multiply_add),
            2 => fixed::<R, 2>(sums, lhs, load, walk, multiply_add),
            3 => fixed::<R, 3>(sums, lhs, load, walk, multiply_add),
            _ => fixed::<R, 4>(sums, lhs, load, walk, multiply_add),
        }
    }
}

/// The micro-kernel with `R` rows of `V` registers. `load(unit, col)` loads 16 columns of a unit of the right operand:
/// `unit` is the offset of the unit from the start of the operand, `col` the first column, both in elements.
///
/// # Safety
/// As [`vectors`].
#[inline(always)]
unsafe fn fixed<const R: usize, const V: usize>(
    sums: Sums,
    lhs: [*const f32; ROWS],
    load: impl Fn(usize, usize) -> __m512,
    walk: &Walk,
    multiply_add: impl Fn(__m512, __m512, __m512) -> __m512 + Copy,
) {
    // SAFETY: the rows and columns are inside the tile; the caller guarantees the operands.
    unsafe {
        let mut tile = [[_mm512_setzero_ps(); V]; R];
        if sums.add {
            tile = from_fn(|r| from_fn(|v| _mm512_loadu_ps(sums.at(r, 16 * v))));
        }
        for segment in 0..walk.segments {
            let mut right = segment * walk.rhs_segment;
            let mut offset = segment * walk.lhs_segment;
            for _ in 0..walk.units {
                let b: [__m512; V] = from_fn(|v| load(right, 16 * v));
                right += COLS;
                for r in 0..R {
                    let a = _mm512_set1_ps(lhs[r].add(offset).read_unaligned());
                    for v in 0..V {
                        tile[r][v] = multiply_add(tile[r][v], a, b[v]);
                    }
                }
                offset += walk.lhs_step;
            }
        }
        for r in 0..R {
            for v in 0..V {
                _mm512_storeu_ps(sums.at(r, 16 * v), tile[r][v]);
            }
        }
    }
}

/// The sums of the high and the low parts of some rows times a strip of 8-bit weights, with AVX512-VNNI.
///
/// `VPDPBUSD` multiplies unsigned by signed integers. So 128 is added to the inputs, and 128 times the column's total is subtracted from
/// the sum.
///
/// # Safety
/// The processor must have AVX-512 F and VNNI; the rows must have the depth of the strip; `totals` must have its columns.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(crate) unsafe fn multiply_int8(
    sums: &mut IntegerSums,
    rows: InputRows,
    weights: &[StripUnit],
    totals: &[i32],
) {
    let totals = &totals[..STRIP_COLS];
    let mut first = 0;
    while first < rows.rows {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match rows.rows - first {
                1 => int8_rows::<1>(sums, rows, first, weights, totals),
                2 => int8_rows::<2>(sums, rows, first, weights, totals),
                3 => int8_rows::<3>(sums, rows, first, weights, totals),
                4 => int8_rows::<4>(sums, rows, first, weights, totals),
                5 => int8_rows::<5>(sums, rows, first, weights, totals),
                _ => int8_rows::<6>(sums, rows, first, weights, totals),
            }
        }
        first += ROWS;
    }
}

/// [`multiply_int8`] for `R` rows from `first` on.
///
/// # Safety
/// As [`multiply_int8`]; there must be as many rows.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn int8_rows<const R: usize>(
    sums: &mut IntegerSums,
    rows: InputRows,
    first: usize,
    weights: &[StripUnit],
    totals: &[i32],
) {
    let mut registers = [[[_mm512_setzero_si512(); 2]; 2]; R];
    let starts: [[*const i8; 2]; R] = from_fn(|r| {
        [rows.high, rows.low].map(|part| part.as_ptr().wrapping_add((first + r) * rows.steps).cast())
    });
    for (u, unit) in weights.iter().enumerate() {
        let ahead = std::ptr::from_ref(unit).cast::<u8>().wrapping_add(INT8_PREFETCH_AHEAD);
        prefetch(ahead, PrefetchHint::Read);
        prefetch(ahead.wrapping_add(CACHE_LINE), PrefetchHint::Read);
        // SAFETY: a unit has two registers; the caller guarantees the rows.
        unsafe {
            let w: [__m512i; 2] = from_fn(|v| _mm512_loadu_si512(unit.0[16 * v..].as_ptr().cast()));
            for r in 0..R {
                for part in 0..2 {
                    let x = starts[r][part].add(u * UNIT).cast::<i32>().read_unaligned();
                    // To add 128 to each byte is to flip its highest bit.
                    let x = _mm512_set1_epi32(x ^ 0x8080_8080_u32 as i32);
                    for v in 0..2 {
                        registers[r][part][v] = _mm512_dpbusd_epi32(registers[r][part][v], x, w[v]);
                    }
                }
            }
        }
    }
    for r in 0..R {
        for (part, sums) in [&mut sums.high[first + r], &mut sums.low[first + r]].into_iter().enumerate() {
            for v in 0..2 {
                // SAFETY: 16 integers each.
                unsafe {
                    let totals = _mm512_loadu_si512(totals[16 * v..].as_ptr().cast());
                    let offset = _mm512_mullo_epi32(totals, _mm512_set1_epi32(128));
                    let sum = _mm512_sub_epi32(registers[r][part][v], offset);
                    _mm512_storeu_si512(sums[16 * v..].as_mut_ptr().cast(), sum);
                }
            }
        }
    }
}

/// Copies with non-temporal stores.
///
/// # Safety
/// The processor must have AVX-512 F; `from` must be readable and `to` writable for `len` bytes; `to` must be aligned
/// to a cache line and `len` a whole number of lines.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn store_non_temporal(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        for start in (0..len).step_by(CACHE_LINE) {
            _mm512_stream_si512(to.add(start).cast(), _mm512_loadu_si512(from.add(start).cast()));
        }
    }
}

/// Rounds f32 to bfloat16.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL and BF16; `len` elements must be readable and writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn round(out: *mut i16, values: *const f32, len: usize) {
    // SAFETY: full registers stay inside `len`; the rest is masked.
    unsafe {
        let whole = len - len % LANES;
        for start in (0..whole).step_by(LANES) {
            let bits = rounded(_mm512_loadu_ps(values.add(start)));
            _mm256_storeu_si256(out.add(start).cast(), bits);
        }
        if whole < len {
            let mask = first(len - whole);
            let bits = rounded(_mm512_maskz_loadu_ps(mask, values.add(whole)));
            _mm256_mask_storeu_epi16(out.add(whole), mask, bits);
        }
    }
}

/// Rounds two rows of f32 to bfloat16 and interleaves them.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL and BF16; `len` elements must be readable, `len` pairs writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn round_pairs(out: *mut i32, low: *const f32, high: *const f32, len: usize) {
    // SAFETY: full registers stay inside `len`; the rest is masked.
    unsafe {
        let whole = len - len % LANES;
        for start in (0..whole).step_by(LANES) {
            let pairs = zipped(_mm512_loadu_ps(low.add(start)), _mm512_loadu_ps(high.add(start)));
            _mm512_storeu_si512(out.add(start).cast(), pairs);
        }
        if whole < len {
            let mask = first(len - whole);
            let low = _mm512_maskz_loadu_ps(mask, low.add(whole));
            let high = _mm512_maskz_loadu_ps(mask, high.add(whole));
            _mm512_mask_storeu_epi32(out.add(whole), mask, zipped(low, high));
        }
    }
}

/// A mask of the first `count` lanes.
fn first(count: usize) -> __mmask16 {
    (1 << count) - 1
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(values: __m512) -> __m256i {
    // SAFETY: both types are 256 bits of plain data.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) }
}

/// Sixteen units: `low` in the lower halves, `high` in the upper halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn zipped(low: __m512, high: __m512) -> __m512i {
    let (low, high) = (_mm512_cvtepu16_epi32(rounded(low)), _mm512_cvtepu16_epi32(rounded(high)));
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}

/// Transposes a square of [`LANES`] x [`LANES`] units with four perfect shuffles of all 256. The position of a unit is
/// its row and its column, 4 bits each. A shuffle interleaves the upper and the lower half of the rows, which rotates
/// these 8 bits by one; after four shuffles, row and column are exchanged.
///
/// # Safety
/// The processor must have AVX-512 F. `from` must be readable for [`LANES`] rows of 16 units that are `step` units
/// apart; `out` must be writable for as many rows that are `stride` units apart.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) unsafe fn transpose(out: *mut i32, stride: usize, from: *const i32, step: usize) {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (r, row) in rows.iter_mut().enumerate() {
        // SAFETY: guaranteed by the caller.
        *row = unsafe { _mm512_loadu_si512(from.add(r * step).cast()) };
    }
    for _ in 0..4 {
        let before = rows;
        for r in 0..LANES / 2 {
            rows[2 * r] = _mm512_permutex2var_epi32(before[r], low, before[r + LANES / 2]);
            rows[2 * r + 1] = _mm512_permutex2var_epi32(before[r], high, before[r + LANES / 2]);
        }
    }
    for (r, row) in rows.into_iter().enumerate() {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_storeu_si512(out.add(r * stride).cast(), row) };
    }
}

/// Registers of sums, as many as in a tile: more than the latency of the instruction times its throughput. Two indices
/// let the compiler unroll both loops.
const CHAINS: usize = ROWS * 4;
type PeakSums = [[__m512; 4]; ROWS];

/// The throughput of f32 multiply-adds; see [`crate::peak`].
///
/// # Safety
/// The processor must have AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn peak_f32(rounds: usize) -> (f64, f32) {
    let (a, b) = (_mm512_set1_ps(std::hint::black_box(1.0)), _mm512_set1_ps(std::hint::black_box(1e-9)));
    let mut sums = [[_mm512_setzero_ps(); 4]; ROWS];
    for _ in 0..rounds {
        for r in 0..ROWS {
            for v in 0..4 {
                sums[r][v] = _mm512_fmadd_ps(a, b, sums[r][v]);
            }
        }
    }
    ((rounds * CHAINS * 16 * 2) as f64, total(&sums))
}

/// The throughput of bfloat16 dot products; see [`crate::peak`].
///
/// # Safety
/// The processor must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn peak_bf16(rounds: usize) -> (f64, f32) {
    // Both halves of every unit are the bfloat16 1.0.
    let ones = _mm512_set1_epi32(std::hint::black_box(0x3f80_3f80));
    // SAFETY: both are 512 bits of plain data.
    let ones: __m512bh = unsafe { std::mem::transmute(ones) };
    let mut sums = [[_mm512_setzero_ps(); 4]; ROWS];
    for _ in 0..rounds {
        for r in 0..ROWS {
            for v in 0..4 {
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], ones, ones);
            }
        }
    }
    ((rounds * CHAINS * 32 * 2) as f64, total(&sums))
}

#[target_feature(enable = "avx512f")]
fn total(sums: &PeakSums) -> f32 {
    sums.iter().flatten().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
}
