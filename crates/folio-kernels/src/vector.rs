//! The scalar and row functions that the kernels' loops are made of, written so that compilers turn them into
//! vector instructions: no branches, no calls, sums in a fixed number of lanes.

use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::element::Element;

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

/// Numbers that a function computes side by side, operation by operation.
///
/// A long function of one vector is a chain in which every operation waits for the one before; two vectors' chains, one
/// operation of each after the other, fill the units. Compilers keep the order in which they find the operations.
///
/// ```
/// use folio_kernels::vector::Lanes;
/// let x = Lanes::from_array([0.5; 32]);
/// assert_eq!((x * 2.0).mul_add(x, 1.0).to_array(), [1.5; 32]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Lanes([f32; LANES]);

impl Lanes {
    /// The numbers of an array.
    #[inline(always)]
    pub fn from_array(array: [f32; LANES]) -> Self {
        Self(array)
    }

    /// The array of the numbers.
    #[inline(always)]
    pub fn to_array(self) -> [f32; LANES] {
        self.0
    }

    /// `self a + b`, rounded once.
    #[inline(always)]
    pub fn mul_add(self, a: impl Into<Self>, b: impl Into<Self>) -> Self {
        let (a, b) = (a.into(), b.into());
        let mut sum = self;
        for lane in 0..LANES {
            sum.0[lane] = self.0[lane].mul_add(a.0[lane], b.0[lane]);
        }
        sum
    }

    /// The numbers, but not below `bound`; NaN stays NaN.
    #[inline(always)]
    pub fn not_below(self, bound: f32) -> Self {
        // A comparison rather than `max` lets NaN through.
        self.map(
            #[inline(always)]
            |x| if x < bound { bound } else { x },
        )
    }

    /// The numbers, but not above `bound`; NaN stays NaN.
    #[inline(always)]
    pub fn not_above(self, bound: f32) -> Self {
        self.map(
            #[inline(always)]
            |x| if x > bound { bound } else { x },
        )
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

/// `rows = f(rows, x)` in pieces of 32 columns, of which the last are filled up with zeros.
///
/// ```
/// use folio_kernels::vector::map_lanes;
/// let mut y = [1.0, 2.0, 3.0];
/// map_lanes([&mut y], &[0.5f32; 3], |[y], x| [y * x]);
/// assert_eq!(y, [0.5, 1.0, 1.5]);
/// ```
///
/// # Panics
/// If the rows are not as long as `x`.
#[inline(always)]
pub fn map_lanes<E: Element, const N: usize>(
    mut rows: [&mut [f32]; N],
    x: &[E],
    f: impl Copy + Fn([Lanes; N], Lanes) -> [Lanes; N],
) {
    rows.iter().for_each(|row| assert_eq!(row.len(), x.len(), "rows of one map"));
    let rest = x.len() % LANES;
    for place in (0..x.len() - rest).step_by(LANES) {
        map_piece(&mut rows, x, place, LANES, f);
    }
    if rest > 0 {
        map_piece(&mut rows, x, x.len() - rest, rest, f);
    }
}

/// The `len` columns from `place` on, of [`map_lanes`].
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

/// `2^x` in f32, to a relative error below 2 eps (eps = 2^-23) for x in [-126, 126]; beyond, and of NaN, it means nothing.
///
/// 2^x = 2^n 2^f, n = round(x), |f| <= 1/2, and both are exact. 2^f is the polynomial of degree 6 that meets it in the
/// Chebyshev nodes of [-1/2, 1/2] (Press et al. 2007, "Numerical Recipes", section 5.8), to a relative error below 2e-8.
#[inline(always)]
pub fn exp2(x: Lanes) -> Lanes {
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let mut p = f.mul_add(1.546_144_5e-4, 1.340_042_8e-3);
    p = p.mul_add(f, 9.618_057e-3);
    p = p.mul_add(f, 5.550_327e-2);
    p = p.mul_add(f, 0.240_226_5);
    p = p.mul_add(f, std::f32::consts::LN_2);
    p = p.mul_add(f, 1.0);
    // n, in the low bits, becomes a multiple of the exponent's unit; what stands above it is shifted out.
    p.zip(shifted, |p, shifted| f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23)))
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
