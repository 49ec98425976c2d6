//! Evaluates the graph of an ONNX file, with the definitions of its operators, and compares it with the model.

use std::collections::BTreeMap;
use std::fs;

use folio::export::onnx::proto::{EXTERNAL, INT64, ModelProto, NodeProto, TensorProto};
use folio::export::{TrainedModel, onnx};
use folio::model::{Activation, CpuBackend, ModelConfig, Precision};
use prost::Message;

use super::with_model;

/// A tensor; integers and truth values are exact in f64.
#[derive(Clone, Debug)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Tensor {
    fn new(shape: &[usize], values: Vec<f64>) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{shape:?}");
        Self { shape: shape.to_vec(), values }
    }

    fn of(proto: &TensorProto) -> Self {
        let shape: Vec<usize> = proto.dims.iter().map(|&size| size as usize).collect();
        let values = match proto.data_type {
            INT64 => {
                proto.raw_data.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as f64).collect()
            }
            _ => proto.raw_data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect(),
        };
        Self::new(&shape, values)
    }

    fn last(&self) -> usize {
        *self.shape.last().expect("not a scalar")
    }

    /// One result for each element of two or three tensors, with dimensions of 1 repeated.
    fn broadcast(inputs: &[&Self], compute: impl Fn(&[f64]) -> f64) -> Self {
        let rank = inputs.iter().map(|input| input.shape.len()).max().expect("an input");
        let shapes: Vec<Vec<usize>> = inputs
            .iter()
            .map(|input| [vec![1; rank - input.shape.len()], input.shape.clone()].concat())
            .collect();
        let shape: Vec<usize> =
            (0..rank).map(|axis| shapes.iter().map(|shape| shape[axis]).max().expect("an input")).collect();
        let values = indices(&shape).map(|index| {
            let at = |shape: &Vec<usize>| {
                shape
                    .iter()
                    .zip(&index)
                    .fold(0, |at, (&size, &index)| at * size + if size == 1 { 0 } else { index })
            };
            let values: Vec<f64> =
                inputs.iter().zip(&shapes).map(|(input, shape)| input.values[at(shape)]).collect();
            compute(&values)
        });
        Self::new(&shape, values.collect())
    }

    fn map(&self, compute: impl Fn(f64) -> f64) -> Self {
        Self::new(&self.shape, self.values.iter().copied().map(compute).collect())
    }

    /// One row for each row.
    fn rows(&self, compute: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        Self::new(&self.shape, self.values.chunks_exact(self.last()).flat_map(compute).collect())
    }

    fn transposed(&self, order: &[i64]) -> Self {
        let shape: Vec<usize> = order.iter().map(|&axis| self.shape[axis as usize]).collect();
        let values = indices(&shape).map(|index| {
            let from =
                |axis: usize| index[order.iter().position(|&to| to as usize == axis).expect("a permutation")];
            let at = self.shape.iter().enumerate().fold(0, |at, (axis, &size)| at * size + from(axis));
            self.values[at]
        });
        Self::new(&shape, values.collect())
    }

    /// Matrices in the last two dimensions; the right operand has all dimensions or is one matrix.
    fn matmul(&self, right: &Self) -> Self {
        let (inner, columns) = (self.last(), right.last());
        let rows = self.shape[self.shape.len() - 2];
        let each = if right.shape.len() == 2 { 0 } else { inner * columns };
        let values = self.values.chunks_exact(inner).enumerate().flat_map(|(row, left)| {
            let matrix = &right.values[row / rows * each..][..inner * columns];
            let sum = move |column| (0..inner).map(|k| left[k] * matrix[k * columns + column]).sum();
            (0..columns).map(sum).collect::<Vec<f64>>()
        });
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("a matrix") = columns;
        Self::new(&shape, values.collect())
    }

    /// The rows of this tensor at these indices.
    fn gather(&self, indices: &Self) -> Self {
        let width: usize = self.shape[1..].iter().product();
        let rows =
            indices.values.iter().flat_map(|&row| self.values[row as usize * width..][..width].to_vec());
        let shape = [&indices.shape[..], &self.shape[1..]].concat();
        Self::new(&shape, rows.collect())
    }

    fn reshaped(&self, sizes: &Self) -> Self {
        let mut shape: Vec<usize> = sizes
            .values
            .iter()
            .enumerate()
            .map(|(axis, &size)| match size {
                0.0 => self.shape[axis],
                -1.0 => 0,
                size => size as usize,
            })
            .collect();
        if let Some(free) = shape.iter().position(|&size| size == 0) {
            shape[free] = 1;
            shape[free] = self.values.len() / shape.iter().product::<usize>();
        }
        Self::new(&shape, self.values.clone())
    }
}

/// All indices into a shape, the last dimension fastest.
fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let shape = shape.to_vec();
    (0..shape.iter().product()).map(move |mut at| {
        let mut index: Vec<usize> = shape
            .iter()
            .rev()
            .map(|&size| {
                let digit = at % size;
                at /= size;
                digit
            })
            .collect();
        index.reverse();
        index
    })
}

/// Abramowitz and Stegun 1964, formula 7.1.26; the error is at most 1.5e-7.
fn erf(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let coefficients = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let polynomial = coefficients.iter().fold(0.0, |sum, coefficient| (sum + coefficient) * t);
    x.signum() * (1.0 - polynomial * (-x * x).exp())
}

fn layer_norm(x: &[f64], weight: &Tensor, bias: &Tensor, epsilon: f64) -> Vec<f64> {
    let count = x.len() as f64;
    let mean = x.iter().sum::<f64>() / count;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let normal = x.iter().map(|x| (x - mean) / (variance + epsilon).sqrt());
    normal.zip(&weight.values).zip(&bias.values).map(|((n, weight), bias)| n * weight + bias).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / sum).collect()
}

fn evaluate(node: &NodeProto, inputs: &[&Tensor]) -> Vec<Tensor> {
    let attribute = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
    let one = match (node.op_type.as_str(), inputs) {
        ("Shape", [x]) => Tensor::new(&[x.shape.len()], x.shape.iter().map(|&size| size as f64).collect()),
        ("Gather", [x, indices]) => x.gather(indices),
        ("Range", [from, to, step]) => {
            assert_eq!((from.values[0], step.values[0]), (0.0, 1.0));
            let count = to.values[0] as usize;
            Tensor::new(&[count], (0..count).map(|value| value as f64).collect())
        }
        ("Unsqueeze", [x, axis]) => {
            let mut shape = x.shape.clone();
            shape.insert(axis.values[0] as usize, 1);
            Tensor::new(&shape, x.values.clone())
        }
        ("LessOrEqual", [..]) => Tensor::broadcast(inputs, |x| f64::from(u8::from(x[0] <= x[1]))),
        ("Where", [..]) => Tensor::broadcast(inputs, |x| if x[0] != 0.0 { x[1] } else { x[2] }),
        ("Add", [..]) => Tensor::broadcast(inputs, |x| x[0] + x[1]),
        ("Mul", [..]) => Tensor::broadcast(inputs, |x| x[0] * x[1]),
        ("Tanh", [x]) => x.map(f64::tanh),
        ("Erf", [x]) => x.map(erf),
        ("MatMul", [left, right]) => left.matmul(right),
        ("Gemm", [left, right]) => {
            assert_eq!(attribute("transB").and_then(|transposed| transposed.i), Some(1));
            left.matmul(&right.transposed(&[1, 0]))
        }
        ("Transpose", [x]) => x.transposed(&attribute("perm").expect("an order").ints),
        ("Reshape", [x, sizes]) => x.reshaped(sizes),
        ("Concat", [left, right]) => {
            let values = [&left.values[..], &right.values].concat();
            Tensor::new(&[values.len()], values)
        }
        ("Softmax", [x]) => x.rows(softmax),
        ("LayerNormalization", [x, weight, bias]) => {
            let epsilon = attribute("epsilon").and_then(|epsilon| epsilon.f).expect("an epsilon").into();
            x.rows(|row| layer_norm(row, weight, bias, epsilon))
        }
        ("Split", [x]) => {
            let (parts, width) = (node.output.len(), x.last());
            let size = width / parts;
            let shape = [&x.shape[..x.shape.len() - 1], &[size]].concat();
            let rows = || x.values.chunks_exact(width);
            let part = |part: usize| rows().flat_map(|row| row[part * size..][..size].to_vec()).collect();
            return (0..parts).map(|index| Tensor::new(&shape, part(index))).collect();
        }
        other => panic!("{other:?}"),
    };
    vec![one]
}

/// The logits (B, T, V) of a file for ids (B, T).
fn logits(file: &ModelProto, ids: &[&[u32]]) -> Tensor {
    let graph = file.graph.as_ref().expect("a graph");
    let mut values: BTreeMap<&str, Tensor> =
        graph.initializer.iter().map(|proto| (proto.name.as_str(), Tensor::of(proto))).collect();
    let input = ids.iter().flat_map(|ids| ids.iter().map(|&id| f64::from(id))).collect();
    values.insert(onnx::INPUT, Tensor::new(&[ids.len(), ids[0].len()], input));
    for node in &graph.node {
        let inputs: Vec<&Tensor> = node.input.iter().map(|name| &values[name.as_str()]).collect();
        let outputs = evaluate(node, &inputs);
        values.extend(node.output.iter().map(String::as_str).zip(outputs));
    }
    values.remove(onnx::OUTPUT).expect("the output")
}

#[track_caller]
fn check_logits(model: &TrainedModel<'_>, file: &ModelProto) {
    let config = model.config;
    let mut backend = CpuBackend::from_parameters(config, Precision::F32, model.parameters.clone());
    let all: Vec<u32> =
        (0..2 * config.block_size).map(|at| (at * at * 7 + at) as u32 % config.vocab_size as u32).collect();
    for time in [1, 4, config.block_size] {
        let batch = [&all[..time], &all[config.block_size..][..time]];
        let got = logits(file, &batch);
        assert_eq!(got.shape, [2, time, config.vocab_size]);
        for (row, got) in got.values.chunks_exact(config.vocab_size).enumerate() {
            let (sequence, at) = (batch[row / time], row % time);
            let want = backend.next_logits(&sequence[..=at]);
            // Sums of at most 40 products in f32, in some twenty layers, and erf's 1.5e-7.
            let largest = want.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let allowed = f64::from(20.0 * 40.0 * f32::EPSILON * largest);
            for (token, (got, want)) in got.iter().zip(want).enumerate() {
                let off = (got - f64::from(*want)).abs();
                assert!(off <= allowed, "time {time}, row {row}, token {token}: {got}, want {want}");
            }
        }
    }
}

fn written(model: &TrainedModel<'_>, path: &std::path::Path) -> ModelProto {
    onnx::write(model, path).expect("it fits");
    let bytes = fs::read(path).expect("there");
    assert!(bytes.starts_with(onnx::BEGINNING));
    ModelProto::decode(bytes.as_slice()).expect("a valid message")
}

#[test]
fn the_graph_computes_the_model_s_logits() {
    let vary = |config: &mut ModelConfig| {
        (config.activation, config.layer_norm_epsilon, config.tie_word_embeddings) =
            (Activation::Gelu, 1e-3, false);
    };
    for change in [|_: &mut ModelConfig| {}, vary] {
        with_model(change, |model, path| check_logits(model, &written(model, path)));
    }
}

#[test]
fn a_file_has_every_weight_once() {
    with_model(
        |_| {},
        |model, path| {
            let file = written(model, path);
            assert_eq!((file.ir_version, file.opset_import[0].version), (8, 17));
            let graph = file.graph.expect("a graph");
            for spec in model.parameters.specs() {
                let same: Vec<&TensorProto> =
                    graph.initializer.iter().filter(|tensor| tensor.name == spec.name).collect();
                let [tensor] = same[..] else { panic!("{} is there {} times", spec.name, same.len()) };
                let shape: Vec<i64> = spec.shape.iter().map(|&size| size as i64).collect();
                assert_eq!(
                    (&tensor.dims, tensor.raw_data.len()),
                    (&shape, 4 * spec.range.len()),
                    "{}",
                    spec.name
                );
                assert_ne!(tensor.data_location, EXTERNAL);
            }
        },
    );
}
