//! The scalar and row functions that the kernels' loops consist of. They are written so that compilers vectorize them:
//! no branches, no calls, and sums in a fixed number of lanes.

use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::element::Element;

/// Lanes of a sum: enough independent chains to keep two 512-bit units busy. Every instruction set uses the same number
/// of lanes, so that all give the same bits.
pub const LANES: usize = 32;

/// 1.5 * 2^23. Adding it to a number leaves the nearest integer in the low bits of the sum's mantissa.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// `exp(x)` in f32, with a relative error below 2 eps (eps = 2^-23) for x in [-87, 88].
///
/// exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2 (Cody and Waite 1980, "Software Manual for the
/// Elementary Functions", chapter 6). exp(r) is its Taylor polynomial of degree 7, whose remainder r^8 / 8! is below
/// 6e-9. Arguments are clamped: below -87 the result is exp(-87) = 1.6e-38, above 88 it is exp(88). NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    // ln 2 as a sum of two numbers. The first has 9 bits, so that n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons instead of `clamp`: they preserve NaN and vectorize to one instruction each.
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

/// `exp(x)` in f32 for x of at most 87; beyond that it is meaningless: `2^(x / ln 2)`, or 0 if that is below 2^-126. The relative error is below
/// (|x| + 2) eps (eps = 2^-23), because that of x / ln 2 grows with x. NaN stays NaN.
#[inline(always)]
pub fn exp_of_negative(x: f32) -> f32 {
    let x = x * std::f32::consts::LOG2_E;
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let [highest, lower @ ..] = POWER_OF_TWO;
    let p = lower.into_iter().fold(highest, |p, coefficient| p.mul_add(f, coefficient));
    let power = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    // In this order, so that NaN stays NaN whatever its bits.
    let outside = if x < -126.0 { 0.0 } else { x };
    if x >= -126.0 { power } else { outside }
}

/// Numbers that a function computes in parallel, one operation at a time.
///
/// In a long function of a single vector, every operation waits for the previous one. Interleaving the operations of
/// two vectors keeps the execution units busy; compilers preserve the order of the operations.
///
/// ```
/// use folio_kernels::vector::Lanes;
/// let x = Lanes::from_array([0.5; 32]);
/// assert_eq!((x * 2.0).mul_add(x, 1.0).to_array(), [1.5; 32]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Lanes([f32; LANES]);

impl Lanes {
    /// Lanes with the elements of an array.
    #[inline(always)]
    pub fn from_array(array: [f32; LANES]) -> Self {
        Self(array)
    }

    /// The lanes as an array.
    #[inline(always)]
    pub fn to_array(self) -> [f32; LANES] {
        self.0
    }

    /// `self * a + b`, rounded once.
    #[inline(always)]
    pub fn mul_add(self, a: impl Into<Self>, b: impl Into<Self>) -> Self {
        let (a, b) = (a.into(), b.into());
        let mut sum = self;
        for lane in 0..LANES {
            sum.0[lane] = self.0[lane].mul_add(a.0[lane], b.0[lane]);
        }
        sum
    }

    /// The maximum of each lane and `bound`; NaN stays NaN.
    #[inline(always)]
    pub fn not_below(self, bound: f32) -> Self {
        // A comparison instead of `max` preserves NaN.
        self.map(
            #[inline(always)]
            |x| if x < bound { bound } else { x },
        )
    }

    /// The minimum of each lane and `bound`; NaN stays NaN.
    #[inline(always)]
    pub fn not_above(self, bound: f32) -> Self {
        self.map(
            #[inline(always)]
            |x| if x > bound { bound } else { x },
        )
    }

    /// The absolute value of each lane.
    #[inline(always)]
    pub fn abs(self) -> Self {
        self.map(f32::abs)
    }

    /// Each lane of `negative` where `self` is below 0, and of `other` where it is not.
    #[inline(always)]
    pub fn if_negative(self, negative: Self, other: Self) -> Self {
        let mut chosen = other;
        for lane in 0..LANES {
            chosen.0[lane] = if self.0[lane] < 0.0 { negative.0[lane] } else { other.0[lane] };
        }
        chosen
    }

    #[inline(always)]
    fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.0.iter_mut().for_each(|x| *x = f(*x));
        self
    }

    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(x, y)| *x = f(*x, *y));
        self
    }
}

impl From<f32> for Lanes {
    #[inline(always)]
    fn from(x: f32) -> Self {
        Self([x; LANES])
    }
}

impl<T: Into<Self>> Add<T> for Lanes {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: T) -> Self {
        self.zip(other.into(), |x, y| x + y)
    }
}

impl<T: Into<Self>> Sub<T> for Lanes {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: T) -> Self {
        self.zip(other.into(), |x, y| x - y)
    }
}

impl<T: Into<Self>> Mul<T> for Lanes {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: T) -> Self {
        self.zip(other.into(), |x, y| x * y)
    }
}

impl Div<Lanes> for f32 {
    type Output = Lanes;

    #[inline(always)]
    fn div(self, other: Lanes) -> Lanes {
        other.map(|x| self / x)
    }
}

impl Neg for Lanes {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        self.map(|x| -x)
    }
}

/// `rows = f(rows, x)`, 32 columns at a time; the last ones are padded with zeros.
///
/// ```
/// use folio_kernels::vector::map_lanes;
/// let mut y = [1.0, 2.0, 3.0];
/// map_lanes([&mut y], &[0.5f32; 3], |[y], x| [y * x]);
/// assert_eq!(y, [0.5, 1.0, 1.5]);
/// ```
///
/// # Panics
/// If a row differs in length from `x`.
#[inline(always)]
pub fn map_lanes<E: Element, const N: usize>(
    mut rows: [&mut [f32]; N],
    x: &[E],
    f: impl Copy + Fn([Lanes; N], Lanes) -> [Lanes; N],
) {
    rows.iter().for_each(|row| assert_eq!(row.len(), x.len(), "a row and `x` differ in length"));
    let rest = x.len() % LANES;
    for place in (0..x.len() - rest).step_by(LANES) {
        map_piece(&mut rows, x, place, LANES, f);
    }
    if rest > 0 {
        map_piece(&mut rows, x, x.len() - rest, rest, f);
    }
}

/// [`map_lanes`] for `len` columns, starting at `place`.
#[inline(always)]
fn map_piece<E: Element, const N: usize>(
    rows: &mut [&mut [f32]; N],
    x: &[E],
    place: usize,
    len: usize,
    f: impl Copy + Fn([Lanes; N], Lanes) -> [Lanes; N],
) {
    let mut old = [Lanes([0.0; LANES]); N];
    for (old, row) in old.iter_mut().zip(&*rows) {
        old.0[..len].copy_from_slice(&row[place..][..len]);
    }
    let mut numbers = Lanes([0.0; LANES]);
    for (number, x) in numbers.0[..len].iter_mut().zip(&x[place..][..len]) {
        *number = x.to_f32();
    }
    for (row, new) in rows.iter_mut().zip(f(old, numbers)) {
        row[place..][..len].copy_from_slice(&new.0[..len]);
    }
}

/// The coefficients of the polynomial of [`exp2`] and [`exp_of_negative`], the highest first.
const POWER_OF_TWO: [f32; 7] =
    [1.546_144_5e-4, 1.340_042_8e-3, 9.618_057e-3, 5.550_327e-2, 0.240_226_5, std::f32::consts::LN_2, 1.0];

/// `2^x` in f32, with a relative error below 2 eps (eps = 2^-23) for x in [-126, 126]. For other arguments the result
/// is meaningless.
///
/// 2^x = 2^n 2^f with n = round(x) and |f| <= 1/2, both exact. 2^f is the polynomial of degree 6 that interpolates it
/// at the Chebyshev nodes of [-1/2, 1/2] (Press et al. 2007, "Numerical Recipes", section 5.8), with a relative error
/// below 2e-8.
#[inline(always)]
pub fn exp2(x: Lanes) -> Lanes {
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let [highest, lower @ ..] = POWER_OF_TWO;
    let mut p = Lanes::from(highest);
    for coefficient in lower {
        p = p.mul_add(f, coefficient);
    }
    // Shifts n from the low bits into the exponent; the higher bits are shifted out.
    p.zip(shifted, |p, shifted| f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23)))
}

/// `exp(z^2 / 2) P(Z > z)` for a standard normal Z: the complementary error function, scaled so that it does not
/// underflow, `exp(z^2 / 2) erfc(z / sqrt(2)) / 2`. In f32, with a relative error below 3 eps (eps = 2^-23) for z in
/// [0, 12.5]. For other arguments the result is meaningless.
///
/// The function is r p(s) with r = 1 / (z + 4) and s = (z - 4) / (z + 4) = 1 - 8 r. A bilinear mapping like s is what makes
/// polynomials converge on the whole range (Schonfelder 1978, "Chebyshev Expansions for the Error and Related
/// Functions"). p is the polynomial of degree 9 that interpolates at the Chebyshev nodes of s (Press et al. 2007,
/// "Numerical Recipes", section 5.8), with a relative error below 1.1e-8.
#[inline(always)]
pub fn scaled_normal_tail(z: Lanes) -> Lanes {
    let r = 1.0 / (z + 4.0);
    let s = r.mul_add(-8.0, 1.0);
    let mut p = s.mul_add(-1.101_871_7e-4, 2.255_444_1e-4);
    p = p.mul_add(s, 1.586_045_8e-3);
    p = p.mul_add(s, -3.533_51e-3);
    p = p.mul_add(s, -7.536_905e-3);
    p = p.mul_add(s, 6.040_675_6e-2);
    p = p.mul_add(s, -0.186_521_62);
    p = p.mul_add(s, 0.387_136_76);
    p = p.mul_add(s, -0.607_896_6);
    p = p.mul_add(s, 0.755_285_14);
    r * p
}

/// The sum of `f` over the columns of rows of equal length, in 32 lanes that are added pairwise at the end.
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
        assert_eq!(row.len(), rows[0].len(), "rows differ in length");
        (*whole, *rest) = row.as_chunks::<LANES>();
    }
    // Chunks are arrays, so that there are no bounds checks, which would prevent vectorization.
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

/// Reduces the lanes to one, folding the upper half into the lower half each time. Loops over arrays of fixed length
/// stay in registers.
#[inline(always)]
pub(crate) fn folded(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
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

/// The maximum of a row; negative infinity if it is empty. NaN is ignored.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    max_by(x, |x| x)
}

/// The maximum of the absolute values of a row; 0 if it is empty. NaN is ignored.
#[inline(always)]
pub fn greatest_magnitude(x: &[f32]) -> f32 {
    max_by(x, f32::abs).max(0.0)
}

/// The maximum of `f` over a row; negative infinity if it is empty. NaN is ignored.
#[inline(always)]
fn max_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (wholes, rest) = x.as_chunks::<LANES>();
    for whole in wholes {
        for lane in 0..LANES {
            lanes[lane] = greater(lanes[lane], f(whole[lane]));
        }
    }
    rest.iter().map(|&x| f(x)).fold(folded(lanes, greater), greater)
}
