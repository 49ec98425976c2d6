//! What the machine itself can do: arithmetic in registers and copying in memory, to measure the kernels by.

use crate::element::Element;
use crate::isa::Isa;

/// Multiply-adds of one register of units into one of sums, `rounds` times over independent registers. Returns the
/// floating-point operations done, and a value that keeps the compiler from dropping them.
///
/// With `Bf16` this is the dot product of pairs where the processor has it; elsewhere bfloat16 has no arithmetic of
/// its own and the f32 one is measured.
pub fn multiply_add<E: Element>(rounds: usize) -> (f64, f32) {
    let isa = Isa::detected();
    #[cfg(target_arch = "x86_64")]
    {
        if isa.has_avx512_bf16() && E::PAIR == 2 {
            // SAFETY: the set has AVX512-BF16.
            return unsafe { x86::avx512_bf16(rounds) };
        }
        if isa.has_avx512() {
            // SAFETY: the set has AVX-512.
            return unsafe { x86::avx512(rounds) };
        }
    }
    isa.run(
        #[inline(always)]
        || portable(rounds),
    )
}

/// Twelve chains of eight lanes, which fill two 256-bit units; in one rounding where that is one instruction.
#[inline(always)]
fn portable(rounds: usize) -> (f64, f32) {
    const CHAINS: usize = 12;
    const LANES: usize = 8;
    let (a, b) = (std::hint::black_box([1.0f32; LANES]), std::hint::black_box([1e-9f32; LANES]));
    let mut sums = [[0.0f32; LANES]; CHAINS];
    for _ in 0..rounds {
        for sums in &mut sums {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = a[lane].mul_add(b[lane], *sum);
            }
        }
    }
    let total = sums.iter().flatten().sum();
    ((rounds * CHAINS * LANES * 2) as f64, total)
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop)] // Iterators keep the compiler from unrolling.
mod x86 {
    use std::arch::x86_64::*;

    /// Registers of sums, as many as a tile has: more than the latency of the instruction times the units that do
    /// it. Two indices, so that the compiler unrolls both loops.
    const ROWS: usize = 6;
    const CHAINS: usize = ROWS * 4;
    type Sums = [[__m512; 4]; ROWS];

    /// # Safety
    /// The processor must have AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(rounds: usize) -> (f64, f32) {
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
    pub(super) unsafe fn avx512_bf16(rounds: usize) -> (f64, f32) {
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
    fn total(sums: &Sums) -> f32 {
        sums.iter().flatten().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
    }
}
