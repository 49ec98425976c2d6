//! The scalar and row functions that the kernels' loops are made of, written so that compilers turn them into
//! vector instructions: no branches, no calls, sums in a fixed number of lanes.

/// Lanes of a sum: enough independent chains to keep two 512-bit units busy. Sums run in this many lanes on
/// every instruction set, so that all give the same bits.
pub const LANES: usize = 32;

/// 1.5 * 2^23: added to a number, it leaves the nearest integer in the low bits of the sum's mantissa.
const ROUND: f32 = 12_582_912.0;

/// `exp(x)` in f32, to a relative error below 2 eps (eps = 2^-23) for x in [-87, 88].
///
/// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2 (Cody and Waite 1980, "Software Manual for the
/// Elementary Functions", chapter 6). exp(r) is its Taylor polynomial of degree 7, whose remainder
/// r^8 / 8! is below 6e-9. Arguments below -87 give exp(-87) = 1.6e-38, those above 88 exp(88); NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    // ln 2 in two parts; the first has 9 bits, so that n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons rather than `clamp`: they let NaN through and vectorise to one instruction each.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    p = p.mul_add(r, 1.0 / 120.0);
    p = p.mul_add(r, 1.0 / 24.0);
    p = p.mul_add(r, 1.0 / 6.0);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    p * f32::from_bits(exponent << 23)
}

/// `2^x` in f32, to a relative error below 2 eps (eps = 2^-23) for x in [-126, 126]; beyond, and of NaN, it means nothing.
///
/// 2^x = 2^n 2^f, n = round(x), |f| <= 1/2, and both are exact. 2^f is the polynomial of degree 6 that meets it in the
/// Chebyshev nodes of [-1/2, 1/2] (Press et al. 2007, "Numerical Recipes", section 5.8), to a relative error below 2e-8.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let mut p = f.mul_add(1.546_144_5e-4, 1.340_042_8e-3);
    p = p.mul_add(f, 9.618_057e-3);
    p = p.mul_add(f, 5.550_327e-2);
    p = p.mul_add(f, 0.240_226_5);
    p = p.mul_add(f, std::f32::consts::LN_2);
    p = p.mul_add(f, 1.0);
    // n, in the low bits, becomes a multiple of the exponent's unit; what stands above it is shifted out.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The sum of `f` over the columns of some rows of one length, in 32 lanes added up pairwise at the end.
///
/// ```
/// use folio_kernels::vector::sum_by;
/// assert_eq!(sum_by([&[1.0, 2.0], &[3.0, 4.0]], |[a, b]| a * b), 11.0);
/// ```
///
/// # Panics
/// If the rows differ in length.
#[inline(always)]
pub fn sum_by<T: Copy, const N: usize>(rows: [&[T]; N], f: impl Fn([T; N]) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut wholes = [&[][..]; N];
    let mut rests = [&[][..]; N];
    for (row, (whole, rest)) in rows.into_iter().zip(wholes.iter_mut().zip(&mut rests)) {
        assert_eq!(row.len(), rows[0].len(), "rows of one sum");
        (*whole, *rest) = row.as_chunks::<LANES>();
    }
    // Chunks are arrays, so that no column is checked: a check would keep the compiler from vectorising.
    for chunk in 0..wholes[0].len() {
        let mut arrays = [&wholes[0][chunk]; N];
        for (array, whole) in arrays.iter_mut().zip(wholes) {
            *array = &whole[chunk];
        }
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(arrays.map(|array| array[lane]));
        }
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(rests[0].len()) {
        *sum += f(rests.map(|rest| rest[lane]));
    }
    folded(lanes, |a, b| a + b)
}

/// All lanes in one, the upper half to the lower half each time. Loops over arrays of fixed length stay in registers.
#[inline(always)]
fn folded(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    const { assert!(LANES == 32) };
    for lane in 0..16 {
        lanes[lane] = f(lanes[lane], lanes[lane + 16]);
    }
    for lane in 0..8 {
        lanes[lane] = f(lanes[lane], lanes[lane + 8]);
    }
    for lane in 0..4 {
        lanes[lane] = f(lanes[lane], lanes[lane + 4]);
    }
    f(f(lanes[0], lanes[2]), f(lanes[1], lanes[3]))
}

/// The sum of a row.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    sum_by([x], |[x]| x)
}

/// The greatest element of a row; negative infinity for an empty one. NaN is passed over.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (wholes, rest) = x.as_chunks::<LANES>();
    for whole in wholes {
        for lane in 0..LANES {
            lanes[lane] = greater(lanes[lane], whole[lane]);
        }
    }
    rest.iter().copied().fold(folded(lanes, greater), greater)
}
