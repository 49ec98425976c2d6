//! The kernels against their naive twins, on every instruction set that this machine has; against themselves,
//! on other numbers of threads; and the twins against difference quotients.

mod support;

mod finite_differences;
mod vector;

mod adamw;
mod attention;
mod cross_entropy;
mod dropout;
mod embedding;
mod gelu;
mod layernorm;
mod linear;

mod threads;
