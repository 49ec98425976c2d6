//! Tests of the kernels, in both number formats and on every instruction set of this machine:
//! - fast kernels against their naive twins;
//! - fast kernels against themselves, with other numbers of threads and other divisions of the work;
//! - naive twins against difference quotients.

mod support;

mod finite_differences;

mod buffer;
mod element;
mod matmul;
mod panels;
mod vector;

mod adamw;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod amx;
mod attention;
mod dropout;
mod embedding;
mod gelu;
mod head;
mod layernorm;
mod linear;
mod moving_average;
mod newton_schulz;
mod quantized;

mod threads;
