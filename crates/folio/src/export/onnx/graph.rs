//! GPT-2's forward pass as operators of ONNX's opset 17.

use super::proto::{
    AttributeProto, DimensionProto, FLOAT, GraphProto, INT64, NodeProto, TensorProto, ValueInfo,
};
use super::{INPUT, OUTPUT};
use crate::model::{Activation, ModelConfig};

/// The graph without its weights, whose names are those of the parameters.
pub(super) fn graph(config: &ModelConfig, name: &str) -> GraphProto {
    let mut graph = Builder::default();
    forward(&mut graph, config);
    let [batch, time] = ["batch", "time"].map(DimensionProto::free);
    let ids = ValueInfo::tensor(INPUT, INT64, vec![batch.clone(), time.clone()]);
    let logits = vec![batch, time, DimensionProto::fixed(config.vocab_size)];
    GraphProto {
        node: graph.nodes,
        name: name.to_owned(),
        initializer: graph.constants,
        input: vec![ids],
        output: vec![ValueInfo::tensor(OUTPUT, FLOAT, logits)],
    }
}

/// ids (B, T) → logits (B, T, V).
fn forward(graph: &mut Builder, config: &ModelConfig) {
    let zero = graph.integer(0);
    let one = graph.integer(1);
    let shape = graph.op("Shape", [INPUT]); // (B, T)
    let time = graph.op("Gather", [&shape, &one]);
    let positions = graph.op("Range", [&zero, &time, &one]); // (T)
    let mask = causal_mask(graph, &positions);

    let tokens = graph.op("Gather", ["wte.weight", INPUT]); // (B, T, C)
    let places = graph.op("Gather", ["wpe.weight", &positions]); // (T, C)
    let mut x = graph.op("Add", [&tokens, &places]);
    for block in 0..config.n_blocks {
        let at = format!("h.{block}");
        let normal = layer_norm(graph, config, &x, &format!("{at}.ln_1"));
        let attended = attention(graph, config, &normal, &mask, &format!("{at}.attn"));
        x = graph.op("Add", [&x, &attended]);
        let normal = layer_norm(graph, config, &x, &format!("{at}.ln_2"));
        let inner = linear(graph, &normal, &format!("{at}.mlp.c_fc"));
        let active = gelu(graph, config.activation, &inner);
        let outer = linear(graph, &active, &format!("{at}.mlp.c_proj"));
        x = graph.op("Add", [&x, &outer]);
    }
    let x = layer_norm(graph, config, &x, "ln_f");

    // Gemm reads the head (V, C) as it is, but takes matrices only.
    let rows = graph.integers(&[-1, config.n_emb as i64]);
    let rows = graph.op("Reshape", [&x, &rows]); // (B T, C)
    let head = if config.tie_word_embeddings { "wte.weight" } else { "lm_head.weight" };
    let logits = graph.op_with("Gemm", [&rows, head], vec![int("transB", 1)]);
    let vocabulary = graph.integers(&[config.vocab_size as i64]);
    let shape = graph.op_with("Concat", [&shape, &vocabulary], vec![int("axis", 0)]);
    graph.output("Reshape", [&logits, &shape], OUTPUT);
}

/// (T, T): whether the key of a column is not after the query of a row.
fn causal_mask(graph: &mut Builder, positions: &str) -> String {
    let [first, second] = [0, 1].map(|axis| graph.integers(&[axis]));
    let keys = graph.op("Unsqueeze", [positions, &first]); // (1, T)
    let queries = graph.op("Unsqueeze", [positions, &second]); // (T, 1)
    graph.op("LessOrEqual", [&keys, &queries])
}

/// softmax(mask(q kᵀ / sqrt(D))) v, in H heads (Vaswani et al. 2017, section 3.2).
fn attention(graph: &mut Builder, config: &ModelConfig, x: &str, mask: &str, at: &str) -> String {
    let (heads, size) = (config.n_heads as i64, config.head_size() as i64);
    let qkv = linear(graph, x, &format!("{at}.c_attn")); // (B, T, 3C)
    let parts = graph.split(&qkv, ["query", "key", "value"]);
    // 0 keeps the size of the input.
    let divided = graph.integers(&[0, 0, heads, size]);
    let permuted = [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]];
    let mut parts = parts.iter().zip(permuted).map(|(part, order)| {
        let part = graph.op("Reshape", [part, &divided]); // (B, T, H, D)
        graph.op_with("Transpose", [&part], vec![ints("perm", &order)])
    });
    let [query, key, value] = std::array::from_fn(|_| parts.next().expect("three parts"));
    drop(parts);
    let scores = graph.op("MatMul", [&query, &key]); // (B, H, T, T)
    let scale = graph.number(1.0 / (size as f32).sqrt());
    let scores = graph.op("Mul", [&scores, &scale]);
    let never = graph.number(f32::NEG_INFINITY);
    let scores = graph.op("Where", [mask, &scores, &never]);
    let weights = graph.op_with("Softmax", [&scores], vec![int("axis", -1)]);
    let mixed = graph.op("MatMul", [&weights, &value]); // (B, H, T, D)
    let mixed = graph.op_with("Transpose", [&mixed], vec![ints("perm", &[0, 2, 1, 3])]);
    let joined = graph.integers(&[0, 0, config.n_emb as i64]);
    let mixed = graph.op("Reshape", [&mixed, &joined]); // (B, T, C)
    linear(graph, &mixed, &format!("{at}.c_proj"))
}

fn layer_norm(graph: &mut Builder, config: &ModelConfig, x: &str, at: &str) -> String {
    let epsilon = AttributeProto {
        name: "epsilon".to_owned(),
        f: Some(config.layer_norm_epsilon),
        kind: AttributeProto::FLOAT,
        ..AttributeProto::default()
    };
    let [weight, bias] = ["weight", "bias"].map(|part| format!("{at}.{part}"));
    graph.op_with("LayerNormalization", [x, &weight, &bias], vec![int("axis", -1), epsilon])
}

/// x W + b.
fn linear(graph: &mut Builder, x: &str, at: &str) -> String {
    let product = graph.op("MatMul", [x, &format!("{at}.weight")]);
    graph.op("Add", [&product, &format!("{at}.bias")])
}

/// x / 2 (1 + erf(x / sqrt(2))), or x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) (Hendrycks and Gimpel 2016).
fn gelu(graph: &mut Builder, activation: Activation, x: &str) -> String {
    let curve = match activation {
        Activation::Gelu => {
            let scale = graph.number(std::f32::consts::FRAC_1_SQRT_2);
            let scaled = graph.op("Mul", [x, &scale]);
            graph.op("Erf", [&scaled])
        }
        Activation::GeluNew => {
            let [cubic, scale] =
                [0.044715, (2.0 / std::f32::consts::PI).sqrt()].map(|value| graph.number(value));
            let square = graph.op("Mul", [x, x]);
            let cube = graph.op("Mul", [&square, x]);
            let cube = graph.op("Mul", [&cube, &cubic]);
            let sum = graph.op("Add", [x, &cube]);
            let scaled = graph.op("Mul", [&sum, &scale]);
            graph.op("Tanh", [&scaled])
        }
    };
    let [one, half] = [1.0, 0.5].map(|value| graph.number(value));
    let factor = graph.op("Add", [&curve, &one]);
    let halved = graph.op("Mul", [x, &half]);
    graph.op("Mul", [&halved, &factor])
}

/// Nodes and constants in the order in which they are added.
#[derive(Default)]
struct Builder {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Builder {
    /// Adds an operation with one output, and returns the output's name.
    fn op<const N: usize>(&mut self, op_type: &str, inputs: [&str; N]) -> String {
        self.op_with(op_type, inputs, Vec::new())
    }

    fn op_with<const N: usize>(
        &mut self,
        op_type: &str,
        inputs: [&str; N],
        attribute: Vec<AttributeProto>,
    ) -> String {
        let output = format!("{}_{}", op_type.to_lowercase(), self.nodes.len());
        self.push(op_type, &inputs, vec![output.clone()], attribute);
        output
    }

    /// Adds the operation of the graph's output.
    fn output<const N: usize>(&mut self, op_type: &str, inputs: [&str; N], output: &str) {
        self.push(op_type, &inputs, vec![output.to_owned()], Vec::new());
    }

    /// Divides the last dimension into equal parts.
    fn split<const N: usize>(&mut self, x: &str, names: [&str; N]) -> [String; N] {
        let names = names.map(|name| format!("{name}_{}", self.nodes.len()));
        self.push("Split", &[x], names.to_vec(), vec![int("axis", -1)]);
        names
    }

    fn push(&mut self, op_type: &str, inputs: &[&str], output: Vec<String>, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            name: format!("node_{}", self.nodes.len()),
            output,
            op_type: op_type.to_owned(),
            attribute,
        });
    }

    /// A scalar of f32.
    fn number(&mut self, value: f32) -> String {
        self.constant(FLOAT, &[], value.to_le_bytes().to_vec())
    }

    /// A scalar integer.
    fn integer(&mut self, value: i64) -> String {
        self.constant(INT64, &[], value.to_le_bytes().to_vec())
    }

    /// A list of integers.
    fn integers(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(INT64, &[values.len() as i64], bytes)
    }

    /// A constant, which all operations that need it share.
    fn constant(&mut self, data_type: i32, dims: &[i64], raw_data: Vec<u8>) -> String {
        let is_same = |known: &&TensorProto| {
            known.data_type == data_type && known.dims == dims && known.raw_data == raw_data
        };
        if let Some(known) = self.constants.iter().find(is_same) {
            return known.name.clone();
        }
        let name = format!("constant_{}", self.constants.len());
        let dims = dims.to_vec();
        self.constants.push(TensorProto {
            dims,
            data_type,
            name: name.clone(),
            raw_data,
            ..Default::default()
        });
        name
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: Some(value),
        kind: AttributeProto::INT,
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        kind: AttributeProto::INTS,
        ..AttributeProto::default()
    }
}
