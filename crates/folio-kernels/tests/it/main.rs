//! The kernels against their naive twins, in both number formats and on every instruction set that this machine
//! has; against themselves, on other numbers of threads and in other pieces; and the twins against difference
//! quotients.

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
mod quantized;

mod threads;
