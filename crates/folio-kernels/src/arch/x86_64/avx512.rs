//! AVX-512: registers of 16 f32, and AVX512-BF16's dot product of pairs of bfloat16.

#![expect(clippy::needless_range_loop, reason = "loops over registers, unrolled by their constant bounds")]

use std::arch::x86_64::*;
use std::array::from_fn;

use crate::rounding::LANES;
use crate::tile::{COLS, Intent, LINE, ROWS, Sums, Walk, prefetch};
use crate::transpose::SIDE;

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

/// With this many rows or more, software prefetches are needed: the arithmetic fills the processor's window, so that it sees
/// too few units ahead to keep the memory busy.
const ROWS_TO_FETCH_FOR: usize = 3;
/// How far ahead the right operand is prefetched then: 32 units, 8 KiB. Measured: docs/log.md.
const FETCH_AHEAD: usize = 32 * COLS;
/// How far ahead a panel in eight bits is, in bytes: a cache line holds a whole unit, of which the processor, by itself, has
/// too few under way. Measured: docs/log.md.
const BYTES_AHEAD: usize = 4096;

/// # Safety
/// As [`crate::tile::multiply`]; the processor must have AVX-512 F.
#[target_feature(enable = "avx512f,fma")]
pub(crate) unsafe fn multiply_f32<const R: usize>(
    sums: Sums,
    lhs: [*const f32; ROWS],
    rhs: *const f32,
    walk: &Walk,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        vectors::<R>(sums, lhs, rhs, walk, |sum, a, b| _mm512_fmadd_ps(a, b, sum));
    }
}

/// # Safety
/// The units of the walk must be readable in every row of `lhs`, and as many lines of [`COLS`] bytes from `rhs` on; the
/// processor must have AVX-512 F.
#[target_feature(enable = "avx512f,fma")]
pub(crate) unsafe fn multiply_i8<const R: usize>(
    sums: Sums,
    lhs: [*const f32; ROWS],
    rhs: *const i8,
    walk: &Walk,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        let load = |unit: usize, col: usize| {
            if col == 0 {
                prefetch(rhs.wrapping_add(unit + BYTES_AHEAD).cast(), Intent::Read);
            }
            let bytes = _mm_loadu_si128(rhs.add(unit + col).cast());
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
        };
        fixed::<R, 4>(sums, lhs, load, walk, |sum, a, b| _mm512_fmadd_ps(a, b, sum));
    }
}

/// # Safety
/// As [`crate::tile::multiply`]; the processor must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16,fma")]
pub(crate) unsafe fn multiply_bf16<const R: usize>(
    sums: Sums,
    lhs: [*const f32; ROWS],
    rhs: *const f32,
    walk: &Walk,
) {
    // SAFETY: passed on to the caller; a register of units is one of pairs, of the same size.
    unsafe {
        let pairs = |units| std::mem::transmute::<__m512, __m512bh>(units);
        vectors::<R>(sums, lhs, rhs, walk, |sum, a, b| _mm512_dpbf16_ps(sum, pairs(a), pairs(b)));
    }
}

/// # Safety
/// As [`crate::tile::multiply`]; the caller is compiled for AVX-512 F and what `multiply_add` needs.
#[inline(always)]
unsafe fn vectors<const R: usize>(
    sums: Sums,
    lhs: [*const f32; ROWS],
    rhs: *const f32,
    walk: &Walk,
    multiply_add: impl Fn(__m512, __m512, __m512) -> __m512 + Copy,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        let load = |unit: usize, col: usize| {
            if R >= ROWS_TO_FETCH_FOR {
                prefetch(rhs.wrapping_add(unit + col + FETCH_AHEAD).cast(), Intent::Read);
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

/// `load(unit, col)` gives 16 columns of a unit of the right operand: `unit` is the unit's offset from the operand's start,
/// `col` the first of the columns, both in elements.
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
    // SAFETY: rows and columns are those of the tile; the operands are the caller's promise.
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

/// # Safety
/// The processor must have AVX-512 F; both places must hold `len` bytes, whole cache lines, `to` on one.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn store_past_caches(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller vouches for both places.
    unsafe {
        for start in (0..len).step_by(LINE) {
            _mm512_stream_si512(to.add(start).cast(), _mm512_loadu_si512(from.add(start).cast()));
        }
    }
}

/// # Safety
/// The processor must have AVX-512 F, BW, VL and BF16; `len` elements must be readable and writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn round(out: *mut i16, values: *const f32, len: usize) {
    // SAFETY: whole registers stay inside `len`, the rest is masked.
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

/// # Safety
/// The processor must have AVX-512 F, BW, VL and BF16; `len` elements must be readable, `len` pairs writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn round_pairs(out: *mut i32, low: *const f32, high: *const f32, len: usize) {
    // SAFETY: whole registers stay inside `len`, the rest is masked.
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
    // SAFETY: the same 256 bits under another name.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) }
}

/// Sixteen units: each of `low` in its lower half, of `high` in its upper half.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn zipped(low: __m512, high: __m512) -> __m512i {
    let (low, high) = (_mm512_cvtepu16_epi32(rounded(low)), _mm512_cvtepu16_epi32(rounded(high)));
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}

/// Four perfect shuffles of all 256 units. Where one stands is row and column, 4 bits each; a shuffle takes the rows of
/// both halves in turn, which turns these 8 bits by one, so that after four row and column have changed places.
///
/// # Safety
/// The processor must have AVX-512 F; 16 units each must be readable at `SIDE` places that are `step` units apart, and
/// writable at as many, `stride` apart.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) unsafe fn transpose(out: *mut i32, stride: usize, from: *const i32, step: usize) {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let mut rows = [_mm512_setzero_si512(); SIDE];
    for (r, row) in rows.iter_mut().enumerate() {
        // SAFETY: passed on to the caller.
        *row = unsafe { _mm512_loadu_si512(from.add(r * step).cast()) };
    }
    for _ in 0..4 {
        let before = rows;
        for r in 0..SIDE / 2 {
            rows[2 * r] = _mm512_permutex2var_epi32(before[r], low, before[r + SIDE / 2]);
            rows[2 * r + 1] = _mm512_permutex2var_epi32(before[r], high, before[r + SIDE / 2]);
        }
    }
    for (r, row) in rows.into_iter().enumerate() {
        // SAFETY: passed on to the caller.
        unsafe { _mm512_storeu_si512(out.add(r * stride).cast(), row) };
    }
}

/// Registers of sums, as many as a tile has: more than the latency of the instruction times the units that do
/// it. Two indices, so that the compiler unrolls both loops.
const CHAINS: usize = ROWS * 4;
type PeakSums = [[__m512; 4]; ROWS];

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
