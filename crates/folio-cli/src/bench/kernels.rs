//! `folio bench kernels`: times every kernel of a training step, relative to the peak of this machine.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use folio::model::Precision;
use folio_kernels::adamw::{AdamwStep, adamw};
use folio_kernels::attention::{AttentionScratch, Forward, attention_backward, attention_forward};
use folio_kernels::buffer::Buffer;
use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::{AttentionDims, HeadDims, LinearDims, RowDims};
use folio_kernels::dropout::{Dropout, dropout_backward};
use folio_kernels::element::{Bf16, Element};
use folio_kernels::gelu::Gelu;
use folio_kernels::head::{HeadScratch, Objective, VOCAB_SEGMENT, head_backward, head_forward};
use folio_kernels::isa::Isa;
use folio_kernels::layernorm::{LayerNormGradients, Statistics, layernorm_backward, layernorm_forward};
use folio_kernels::linear::{
    GeluGradients, linear_backward_input, linear_backward_weight, linear_forward, linear_gelu_backward,
    linear_gelu_forward, linear_residual_forward, weight_piece,
};
use folio_kernels::panels::{PanelDims, Panels, Reuse, pack_both_ways};
use rayon::prelude::*;
use serde::Serialize;

use super::median;
use super::peak::{Copies, multiplying};

/// The sizes of one setting.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) time: usize,
    pub(super) vocab: usize,
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) dropout: f32,
}

/// The measurements of one kernel.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// The name of the kernel.
    pub(super) kernel: &'static str,
    /// The shapes of its operands.
    pub(super) shape: String,
    /// Milliseconds for a whole batch.
    pub(super) ms: f64,
    /// Arithmetic throughput of matmuls; `None` for other kernels.
    pub(super) gflop_per_s: Option<f64>,
    /// Throughput of the data that must be read from or written to memory; `None` if there is none.
    pub(super) gb_per_s: Option<f64>,
    /// The larger of the percentages of peak arithmetic and of peak copy bandwidth. Each peak is measured in
    /// alternation with the kernel.
    pub(super) share_of_peak: f64,
}

/// Measures all kernels.
pub(super) fn measure(sizes: Sizes, precision: Precision) -> Vec<Row> {
    match precision {
        Precision::F32 => Bench::<f32>::new(sizes).all(),
        Precision::Bf16 => Bench::<Bf16>::new(sizes).all(),
    }
}

struct Bench<E> {
    sizes: Sizes,
    copies: Copies,
    rows: Vec<Row>,
    /// The values that buffers are filled with, repeatedly.
    values: Vec<E>,
}

/// Intermediate results of a step that stay within one thread.
struct Workspace<E> {
    /// (T, C)
    narrow: Buffer<E>,
    /// (T, C)
    branch: Buffer<E>,
    /// (T, 4C)
    wide: Buffer<E>,
    /// (T, C)
    stream: Buffer<f32>,
}

struct Workspaces<E>(Vec<Mutex<Workspace<E>>>);

impl<E> Workspaces<E> {
    /// The workspace of the current thread.
    fn mine(&self) -> MutexGuard<'_, Workspace<E>> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        self.0[thread].lock().expect("no other thread has panicked")
    }
}

/// The minimum work of a kernel, for the whole batch.
struct Cost {
    flop: usize,
    bytes: usize,
}

impl<E: Element> Bench<E> {
    fn new(sizes: Sizes) -> Self {
        let values = (0..997).map(|i| E::from_f32(i as f32 / 500.0 - 1.0)).collect();
        Self { sizes, copies: Copies::new(), rows: Vec::new(), values }
    }

    fn all(mut self) -> Vec<Row> {
        let c = self.sizes.channels;
        for (inputs, outputs) in [(c, 3 * c), (c, c), (c, 4 * c), (4 * c, c)] {
            self.linear(inputs, outputs);
            self.linear_weight(inputs, outputs);
        }
        self.attention();
        self.head();
        self.rowwise();
        self.optimizer();
        self.rows
    }

    /// `len` elements with arbitrary values.
    fn elements(&self, len: usize) -> Buffer<E> {
        let mut buffer = Buffer::zeroed(len);
        buffer.iter_mut().zip(self.values.iter().cycle()).for_each(|(to, from)| *to = *from);
        buffer
    }

    fn floats(&self, len: usize) -> Buffer<f32> {
        let mut buffer = Buffer::zeroed(len);
        buffer.iter_mut().zip(self.values.iter().cycle()).for_each(|(to, from)| *to = from.to_f32());
        buffer
    }

    /// Times `work` on all `states`, distributed over the threads: medians of several runs. Before each run the peaks
    /// are measured, so that other load on the machine affects both.
    fn time<S: Send>(
        &mut self,
        kernel: &'static str,
        shape: String,
        cost: Cost,
        states: &mut [S],
        work: impl Fn(usize, &mut S) + Sync,
    ) {
        const RUNS: usize = 9;
        let mut run = || {
            let start = Instant::now();
            let states = states.par_iter_mut().with_max_len(1).enumerate();
            states.for_each(|(index, state)| work(index, state));
            start.elapsed().as_secs_f64()
        };
        run();
        let (mut times, mut shares) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let memory = self.copies.run();
            let arithmetic = if cost.flop > 0 { multiplying::<E>(1_000_000) } else { f64::INFINITY };
            let seconds = run();
            let arithmetic = cost.flop as f64 / seconds / 1e9 / arithmetic;
            let memory = cost.bytes as f64 / seconds / 1e9 / memory;
            times.push(seconds);
            shares.push(arithmetic.max(memory));
        }
        let seconds = median(times);
        self.rows.push(Row {
            kernel,
            shape,
            ms: seconds * 1e3,
            gflop_per_s: (cost.flop > 0).then_some(cost.flop as f64 / seconds / 1e9),
            gb_per_s: (cost.bytes > 0).then_some(cost.bytes as f64 / seconds / 1e9),
            share_of_peak: 100.0 * median(shares),
        });
    }

    /// The kernels of one linear layer, except the gradient of the weights. They differ from layer to layer. Data that
    /// the previous kernel of a training step has just written, and which is therefore in the cache, is in the thread's
    /// workspace. Data that is stored for the backward pass or for the gradients of the weights is in memory.
    fn linear(&mut self, inputs: usize, outputs: usize) {
        let Sizes { batch, time, channels: c, dropout, .. } = self.sizes;
        let (tokens, element) = (batch * time, size_of::<E>());
        let dims = LinearDims { rows: time, inputs, outputs };
        let forward = PanelDims { depth: inputs, cols: outputs };
        let backward = PanelDims { depth: outputs, cols: inputs };
        let (w, w_t) = (self.elements(forward.len::<E>()), self.elements(backward.len::<E>()));
        let (w, w_t) = (Panels::new(forward, &w), Panels::new(backward, &w_t));
        let (bias, dropout) = (self.floats(outputs), Dropout::new(dropout, 1));
        let flop = 2 * tokens * inputs * outputs;
        let forward_shape = format!("{tokens} x {inputs} x {outputs}");
        let backward_shape = format!("{tokens} x {outputs} x {inputs}");

        let workspaces = self.workspaces();
        let mut kept: Vec<Buffer<E>> =
            (0..batch).map(|_| self.elements(time * inputs.max(outputs))).collect();
        let mut streams: Vec<Buffer<f32>> = (0..batch).map(|_| self.floats(time * c)).collect();

        if outputs == c {
            let cost = Cost { flop, bytes: 4 * tokens * outputs };
            let name = "linear_residual_forward";
            self.time(name, forward_shape, cost, &mut streams, |_, y| {
                let Workspace { narrow, wide, stream, .. } = &*workspaces.mine();
                let x = if inputs == c { narrow } else { wide };
                linear_residual_forward(dims, ColumnsMut::new(y, c), stream, x, (w, &bias), dropout);
            });
        } else if outputs == 3 * c {
            let cost = Cost { flop, bytes: element * tokens * outputs };
            self.time("linear_forward", forward_shape, cost, &mut kept, |_, y| {
                linear_forward(dims, ColumnsMut::new(y, outputs), &workspaces.mine().narrow, w, &bias);
            });
        } else {
            let cost = Cost { flop, bytes: element * tokens * outputs };
            self.time("linear_gelu_forward", forward_shape, cost, &mut kept, |_, fc| {
                let Workspace { narrow, wide, .. } = &mut *workspaces.mine();
                let outputs = (ColumnsMut::new(fc, outputs), ColumnsMut::new(wide, outputs));
                linear_gelu_forward(dims, Gelu::Tanh, outputs, narrow, (w, &bias));
            });
        }
        if inputs == c {
            let name = "linear_backward_input";
            self.time(name, backward_shape, Cost { flop, bytes: 0 }, &mut streams, |_, _| {
                let Workspace { narrow, wide, branch, stream } = &mut *workspaces.mine();
                if outputs == c {
                    linear_backward_input(dims, narrow, branch, w_t);
                } else {
                    linear_backward_input(dims, stream, &wide[..time * outputs], w_t);
                }
            });
        } else {
            let bytes = 3 * element * tokens * inputs;
            let reuse = Reuse::NonTemporal;
            let len = PanelDims { depth: time, cols: inputs }.len::<E>();
            let [mut dfc, mut gelu] = [(); 2].map(|()| self.elements(batch * len));
            let panels = dfc.chunks_mut(len).zip(gelu.chunks_mut(len));
            let mut states: Vec<_> = kept.iter().zip(panels).collect();
            let name = "linear_gelu_backward";
            self.time(
                name,
                backward_shape,
                Cost { flop, bytes },
                &mut states,
                |_, (fc, (dfc_panels, gelu_panels))| {
                    let Workspace { branch, wide: dfc, .. } = &mut *workspaces.mine();
                    let gradients = GeluGradients { dfc, dfc_panels, gelu_panels, reuse };
                    linear_gelu_backward(dims, Gelu::Tanh, gradients, fc, branch, w_t);
                },
            );
        }
    }

    /// The gradient of the weights of one linear layer.
    fn linear_weight(&mut self, inputs: usize, outputs: usize) {
        let Sizes { batch, time, .. } = self.sizes;
        let tokens = batch * time;
        let x_panels = PanelDims { depth: time, cols: inputs };
        let dy_panels = PanelDims { depth: time, cols: outputs };
        let x = self.elements(batch * x_panels.len::<E>());
        let dy = self.elements(batch * dy_panels.len::<E>());
        let x = Panels::segmented(x_panels, &x, batch, x_panels.len::<E>());
        let dy = Panels::segmented(dy_panels, &dy, batch, dy_panels.len::<E>());
        let rows = weight_piece(inputs, rayon::current_num_threads());
        let mut dw = self.floats(inputs * outputs);
        let mut states: Vec<&mut [f32]> = dw.chunks_mut(rows * outputs).collect();
        let cost =
            Cost { flop: 2 * tokens * inputs * outputs, bytes: size_of::<E>() * tokens * (inputs + outputs) };
        let shape = format!("{inputs} x {tokens} x {outputs}");
        self.time("linear_backward_weight", shape, cost, &mut states, |piece, dw| {
            let first = piece * rows;
            linear_backward_weight(first..first + dw.len() / outputs, dw, x, dy, false);
        });
    }

    /// One workspace per thread.
    fn workspaces(&self) -> Workspaces<E> {
        let Sizes { time, channels: c, .. } = self.sizes;
        let workspace = |_| Workspace {
            narrow: self.elements(time * c),
            branch: self.elements(time * c),
            wide: self.elements(time * 4 * c),
            stream: self.floats(time * c),
        };
        Workspaces((0..rayon::current_num_threads()).map(|thread| Mutex::new(workspace(thread))).collect())
    }

    fn attention(&mut self) {
        let Sizes { batch, time, channels: c, heads, dropout, .. } = self.sizes;
        let dims = AttentionDims { batch: 1, time, heads, head_size: c / heads };
        let dropout = Dropout::new(dropout, 1);
        let mut states: Vec<_> = (0..batch)
            .map(|_| {
                let (y, qkv) = (self.elements(time * c), self.elements(time * 3 * c));
                (
                    y,
                    vec![0.0f32; heads * time],
                    qkv,
                    self.elements(time * 3 * c),
                    AttentionScratch::<E>::new(dims),
                )
            })
            .collect();
        let shape = format!("{batch} x {heads} heads x {time} x {}", c / heads);
        // Half of the square of scores; two matmuls in the forward pass and five in the backward pass.
        let (matmul, bytes) = (batch * time * time * c, size_of::<E>() * batch * time * c);
        let cost = Cost { flop: 2 * matmul, bytes: 4 * bytes };
        self.time("attention_forward", shape.clone(), cost, &mut states, |_, (y, lse, qkv, _, scratch)| {
            attention_forward(dims, y, lse, qkv, dropout, scratch);
        });
        let cost = Cost { flop: 5 * matmul, bytes: 8 * bytes };
        self.time("attention_backward", shape, cost, &mut states, |_, (y, lse, qkv, dqkv, scratch)| {
            let forward = Forward { y, qkv, lse };
            attention_backward(dims, dqkv, y, forward, dropout, scratch);
        });
    }

    fn head(&mut self) {
        let Sizes { batch, time, vocab, channels, .. } = self.sizes;
        let dims = HeadDims { rows: time, channels, vocab };
        let forward = PanelDims { depth: channels, cols: vocab };
        let wte_t = self.elements(forward.len::<E>());
        let segment = PanelDims { depth: VOCAB_SEGMENT, cols: channels };
        let wte = self.elements(segment.len::<E>());
        let targets: Vec<u32> = (0..time).map(|t| (t % vocab) as u32).collect();
        let panels = PanelDims { depth: time, cols: vocab };
        // Every sequence has its own scratch here. With a large vocabulary, a whole batch would need too much memory.
        let batch = batch.min(8 * rayon::current_num_threads());
        let mut states: Vec<_> = (0..batch)
            .map(|_| {
                let (x, dlogits) = (self.elements(time * channels), self.elements(panels.len::<E>()));
                (
                    x,
                    vec![0.0f32; time],
                    self.floats(time * channels),
                    dlogits,
                    HeadScratch::<E>::new(dims, true),
                )
            })
            .collect();
        let flop = 2 * batch * time * channels * vocab;
        let bytes = size_of::<E>() * batch * time * (channels + vocab);
        let shape = format!("{} x {channels} x {vocab}", batch * time);
        let cost = Cost { flop, bytes };
        self.time("head_forward", shape.clone(), cost, &mut states, |_, (x, losses, _, _, scratch)| {
            head_forward(dims, losses, x, Panels::new(forward, &wte_t), &targets, scratch);
        });
        let cost = Cost { flop, bytes: 2 * bytes };
        let reuse = Reuse::of(batch * panels.len::<E>() * size_of::<E>());
        self.time("head_backward", shape, cost, &mut states, |_, (_, _, dx, dlogits, scratch)| {
            let segments = (0..vocab).step_by(VOCAB_SEGMENT).map(|first| {
                let dims = PanelDims { depth: (vocab - first).min(VOCAB_SEGMENT), cols: channels };
                Panels::new(dims, &wte)
            });
            let objective =
                Objective { targets: &targets, scale: 1e-4, label_smoothing: 0.0, soft_targets: None };
            head_backward(dims, dx, dlogits, segments, objective, scratch, reuse);
        });
    }

    fn rowwise(&mut self) {
        let Sizes { batch, time, channels: c, dropout, .. } = self.sizes;
        let (dims, element) = (RowDims { rows: time, cols: c }, size_of::<E>());
        let (weight, bias) = (self.floats(c), self.floats(c));
        let shape = format!("{} x {c}", batch * time);
        let mut states: Vec<_> = (0..batch)
            .map(|_| {
                let (mean, rstd) = (vec![0.0f32; time], vec![1.0f32; time]);
                let (x, dx, vectors) = (self.floats(time * c), self.floats(time * c), self.floats(2 * c));
                (x, dx, vectors, mean, rstd, self.elements(time * c))
            })
            .collect();
        let stream = batch * time * c;
        let cost = Cost { flop: 0, bytes: (4 + element) * stream };
        self.time("layernorm_forward", shape.clone(), cost, &mut states, |_, (x, _, _, mean, rstd, y)| {
            layernorm_forward(dims, 1e-5, y, (mean, rstd), x, (&weight, &bias));
        });
        let cost = Cost { flop: 0, bytes: 16 * stream };
        self.time(
            "layernorm_backward",
            shape.clone(),
            cost,
            &mut states,
            |_, (x, dx, sums, mean, rstd, _)| {
                let (dweight, dbias) = sums.split_at_mut(c);
                let gradients = LayerNormGradients { dx, dweight, dbias };
                layernorm_backward(dims, gradients, x, x, Statistics { mean, rstd }, &weight);
            },
        );
        let dropout = Dropout::new(dropout, 1);
        let cost = Cost { flop: 0, bytes: (4 + element) * stream };
        self.time("dropout_backward", shape.clone(), cost, &mut states, |_, (x, .., y)| {
            dropout_backward(dims, y, x, dropout);
        });
        let panels = PanelDims { depth: time, cols: c };
        let mut states: Vec<_> =
            states.iter().map(|state| (&state.5, self.elements(panels.len::<E>()))).collect();
        let cost = Cost { flop: 0, bytes: 2 * element * stream };
        self.time("pack_rows", shape, cost, &mut states, |_, (x, out)| {
            let isa = Isa::detected();
            isa.run(
                #[inline(always)]
                || pack_both_ways::<E, E>(isa, (time, c), Some(out), None, x, Reuse::NonTemporal),
            );
        });
    }

    fn optimizer(&mut self) {
        let Sizes { channels: c, .. } = self.sizes;
        let len = 12 * c * c;
        let step = AdamwStep {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            gradient_scale: 1.0,
            bias_correction1: 0.1,
            bias_correction2: 0.01,
        };
        let mut states = [(self.floats(len), self.floats(len), self.floats(len), vec![1.0f32; len])];
        let cost = Cost { flop: 0, bytes: 28 * len };
        self.time("adamw", format!("{len}"), cost, &mut states, |_, (p, g, m, v)| adamw(p, g, m, v, step));
    }
}
