//! Reads pickles, the serialization of Python, without executing anything.
//!
//! A pickle is a program for a stack machine that may call any Python function. This reader knows the instructions that
//! build plain data, and the few classes of a PyTorch state dict, which it turns into values of its own. Everything else is
//! refused by name. Values are nodes of an arena, so memory is proportional to the length of the pickle.
//!
//! The instructions are documented in Python's `pickletools` module, protocols 2 to 5.

use std::collections::HashMap;

/// A value, by its number in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(usize);

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// `None`.
    Nothing,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, whose value is not needed.
    LargeInt,
    Float(f64),
    Text(String),
    /// Bytes, whose content is not needed.
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// A dictionary, ordered or not.
    Dict(Vec<(Id, Id)>),
    /// A class or function, not called yet.
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
}

/// The dimensions of a tensor. A weight has at most two; more would let a small file ask for much memory.
const MOST_DIMENSIONS: usize = 8;
/// The length of a storage's key. PyTorch writes numbers.
const LONGEST_KEY: usize = 64;

/// The classes and functions of a state dict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Number),
}

/// The number format of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    F64,
    F32,
    F16,
    Bf16,
    /// Integers and booleans of this many bytes: buffers and counters, never weights.
    Other(u64),
}

impl Number {
    /// Bytes per element.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(bytes) => bytes,
        }
    }
}

/// The memory behind tensors: an entry of the zip file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) number: Number,
    /// The name of its entry.
    pub(super) key: String,
    /// Elements.
    pub(super) len: u64,
}

/// A view of a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    /// The first element.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// In elements.
    pub(super) strides: Vec<u64>,
}

const CLASSES: [(&str, Global); 13] = [
    ("collections.OrderedDict", Global::OrderedDict),
    ("torch._utils._rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils._rebuild_parameter", Global::RebuildParameter),
    ("torch.DoubleStorage", Global::Storage(Number::F64)),
    ("torch.FloatStorage", Global::Storage(Number::F32)),
    ("torch.HalfStorage", Global::Storage(Number::F16)),
    ("torch.BFloat16Storage", Global::Storage(Number::Bf16)),
    ("torch.LongStorage", Global::Storage(Number::Other(8))),
    ("torch.IntStorage", Global::Storage(Number::Other(4))),
    ("torch.ShortStorage", Global::Storage(Number::Other(2))),
    ("torch.CharStorage", Global::Storage(Number::Other(1))),
    ("torch.ByteStorage", Global::Storage(Number::Other(1))),
    ("torch.BoolStorage", Global::Storage(Number::Other(1))),
];

/// The longest name of a class in a message.
const SHOWN_CHARS: usize = 80;

type Read<T> = Result<T, String>;

/// The values of a pickle.
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Reads a pickle. The error completes the sentence "FILE ...".
    pub(super) fn read(bytes: &[u8]) -> Read<Self> {
        let mut machine = Machine { rest: bytes, nodes: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
        let root = machine.run()?;
        Ok(Self { nodes: machine.nodes, root })
    }

    /// The value that the pickle stands for.
    pub(super) fn root(&self) -> &Node {
        self.node(self.root)
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0]
    }

    /// The value under a name; none if `node` is not a dictionary that has it. The last one counts, as in Python.
    pub(super) fn get(&self, node: &Node, name: &str) -> Option<&Node> {
        let mut entries = self.entries(node)?.iter().rev();
        let (_, value) =
            entries.find(|(key, _)| matches!(self.node(*key), Node::Text(key) if key == name))?;
        Some(self.node(*value))
    }

    /// The keys and values of a dictionary; none for other values.
    pub(super) fn entries<'a>(&self, node: &'a Node) -> Option<&'a [(Id, Id)]> {
        if let Node::Dict(entries) = node { Some(entries) } else { None }
    }
}

/// The stack machine.
struct Machine<'a> {
    rest: &'a [u8],
    nodes: Vec<Node>,
    /// `None` is a mark.
    stack: Vec<Option<Id>>,
    memo: HashMap<u32, Id>,
}

fn damaged(what: &str) -> String {
    format!("is damaged: its pickle {what}")
}

impl<'a> Machine<'a> {
    /// Runs to the end.
    fn run(&mut self) -> Read<Id> {
        loop {
            let [code] = self.array()?;
            if code == b'.' {
                return self.pop();
            }
            self.step(code)?;
        }
    }

    /// One instruction.
    fn step(&mut self, code: u8) -> Read<()> {
        match code {
            // PROTO and FRAME.
            0x80 => self.array::<1>().map(drop)?,
            0x95 => self.array::<8>().map(drop)?,
            b'(' => self.stack.push(None),
            b'0' => self.stack.pop().map(drop).ok_or_else(|| damaged("takes from an empty stack"))?,
            b'1' => self.pop_to_mark().map(drop)?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(Some(top));
            }
            b'N' => self.push(Node::Nothing),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'J' | b'K' | b'M' | b'G' | 0x8a | 0x8b => self.number(code)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' => self.text(code)?,
            b'B' | b'C' | 0x8e | 0x96 => self.bytes(code)?,
            b')' | b']' | b'}' => self.push(match code {
                b')' => Node::Tuple(Vec::new()),
                b']' => Node::List(Vec::new()),
                _ => Node::Dict(Vec::new()),
            }),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items));
            }
            0x85..=0x87 => {
                let mut items: Vec<Id> = (0x84..code).map(|_| self.pop()).collect::<Read<_>>()?;
                items.reverse();
                self.push(Node::Tuple(items));
            }
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items));
            }
            b'd' => {
                let entries = pairs(self.pop_to_mark()?)?;
                self.push(Node::Dict(entries));
            }
            b'a' | b'e' | b's' | b'u' => self.extend(code)?,
            // MEMOIZE, BINPUT, LONG_BINPUT, BINGET, LONG_BINGET.
            0x94 => self.remember(self.memo.len() as u32)?,
            b'q' => {
                let [key] = self.array()?;
                self.remember(u32::from(key))?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            b'h' => {
                let [key] = self.array()?;
                self.recall(u32::from(key))?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            b'c' | 0x93 => self.global(code)?,
            b'R' => self.call()?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            other => return Err(refused_instruction(other)),
        }
        Ok(())
    }

    /// BININT, BININT1, BININT2, BINFLOAT, LONG1, LONG4.
    fn number(&mut self, code: u8) -> Read<()> {
        let node = match code {
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Node::Int(i64::from(u8::from_le_bytes(self.array()?))),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            _ => {
                let length = if code == 0x8a { self.length::<1>()? } else { self.length::<4>()? };
                let bytes = self.take(length)?;
                let is_negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
                let mut all = [if is_negative { 0xff } else { 0 }; 8];
                match all.get_mut(..bytes.len()) {
                    Some(low) => {
                        low.copy_from_slice(bytes);
                        Node::Int(i64::from_le_bytes(all))
                    }
                    None => Node::LargeInt,
                }
            }
        };
        self.push(node);
        Ok(())
    }

    /// BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, and the strings of Python 2.
    fn text(&mut self, code: u8) -> Read<()> {
        let length = match code {
            0x8c | b'U' => self.length::<1>()?,
            0x8d => self.length::<8>()?,
            _ => self.length::<4>()?,
        };
        let text =
            std::str::from_utf8(self.take(length)?).map_err(|_| damaged("has a text that is not UTF-8"))?;
        self.push(Node::Text(text.to_owned()));
        Ok(())
    }

    /// BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8.
    fn bytes(&mut self, code: u8) -> Read<()> {
        let length = match code {
            b'C' => self.length::<1>()?,
            b'B' => self.length::<4>()?,
            _ => self.length::<8>()?,
        };
        self.take(length)?;
        self.push(Node::Bytes);
        Ok(())
    }

    /// APPEND, APPENDS, SETITEM, SETITEMS.
    fn extend(&mut self, code: u8) -> Read<()> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        let top = self.top()?;
        match (code, &mut self.nodes[top.0]) {
            (b'a' | b'e', Node::List(list)) => list.extend(items),
            (b's' | b'u', Node::Dict(entries)) => entries.extend(pairs(items)?),
            _ => return Err(damaged("adds elements to a value that has none")),
        }
        Ok(())
    }

    /// GLOBAL and STACK_GLOBAL: names a class or function.
    fn global(&mut self, code: u8) -> Read<()> {
        let name = if code == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            format!("{module}.{name}")
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (&self.nodes[module.0], &self.nodes[name.0]) {
                (Node::Text(module), Node::Text(name)) => format!("{module}.{name}"),
                _ => return Err(damaged("names a class by a value that is not a text")),
            }
        };
        match CLASSES.iter().find(|(known, _)| *known == name) {
            Some((_, global)) => self.push(Node::Global(*global)),
            None => {
                let shown: String = name.chars().take(SHOWN_CHARS).map(plain).collect();
                return Err(format!(
                    "contains {shown}, which is not part of a state dict, and folio executes nothing from a checkpoint: \
                     in Python, load it and save its weights alone with torch.save(model.state_dict(), FILE)"
                ));
            }
        }
        Ok(())
    }

    /// REDUCE: a call, of which those of a state dict are known.
    fn call(&mut self) -> Read<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Node::Global(global), Node::Tuple(arguments)) =
            (&self.nodes[function.0], &self.nodes[arguments.0])
        else {
            return Err(damaged("calls a value that is not a function"));
        };
        let node = match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => Node::Dict(Vec::new()),
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                Node::Tensor(self.tensor(*storage, *offset, *shape, *strides)?)
            }
            (Global::RebuildParameter, [tensor, ..]) => match &self.nodes[tensor.0] {
                Node::Tensor(tensor) => Node::Tensor(tensor.clone()),
                _ => return Err(damaged("makes a parameter of a value that is not a tensor")),
            },
            _ => return Err(damaged("calls a class of a state dict with wrong arguments")),
        };
        self.push(node);
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Read<Tensor> {
        let size = |id: &Id| match self.nodes[id.0] {
            Node::Int(size) => u64::try_from(size).ok(),
            _ => None,
        };
        let sizes = |id: Id| match &self.nodes[id.0] {
            Node::Tuple(sizes) => sizes.iter().map(size).collect::<Option<Vec<u64>>>(),
            _ => None,
        };
        match (&self.nodes[storage.0], size(&offset), sizes(shape), sizes(strides)) {
            (Node::Storage(storage), Some(offset), Some(shape), Some(strides))
                if shape.len() == strides.len() && shape.len() <= MOST_DIMENSIONS =>
            {
                Ok(Tensor { storage: storage.clone(), offset, shape, strides })
            }
            _ => Err(damaged("has a tensor with an invalid shape")),
        }
    }

    /// BUILD: sets attributes. An `OrderedDict` of weights has some, which are not needed.
    fn build(&mut self) -> Read<()> {
        let (_, object) = (self.pop()?, self.top()?);
        match self.nodes[object.0] {
            Node::Dict(_) => Ok(()),
            _ => Err(damaged("sets attributes of a value that has none")),
        }
    }

    /// BINPERSID: a reference to a storage, `("storage", class, key, device, elements)`.
    fn persistent(&mut self) -> Read<()> {
        let reference = self.pop()?;
        let wrong = || damaged("refers to something that is not a storage");
        let Node::Tuple(parts) = &self.nodes[reference.0] else { return Err(wrong()) };
        let [kind, class, key, _, len] = parts.as_slice() else { return Err(wrong()) };
        let node = |id: &Id| &self.nodes[id.0];
        match (node(kind), node(class), node(key), node(len)) {
            (Node::Text(kind), Node::Global(Global::Storage(number)), Node::Text(key), Node::Int(len))
                if kind == "storage" && *len >= 0 && key.len() <= LONGEST_KEY =>
            {
                let storage = Storage { number: *number, key: key.clone(), len: *len as u64 };
                self.push(Node::Storage(storage));
                Ok(())
            }
            _ => Err(wrong()),
        }
    }

    fn push(&mut self, node: Node) {
        self.stack.push(Some(Id(self.nodes.len())));
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Read<Id> {
        self.stack.pop().flatten().ok_or_else(|| damaged("takes from an empty stack"))
    }

    fn top(&self) -> Read<Id> {
        self.stack.last().copied().flatten().ok_or_else(|| damaged("takes from an empty stack"))
    }

    fn pop_to_mark(&mut self) -> Read<Vec<Id>> {
        let mark = self.stack.iter().rposition(Option::is_none).ok_or_else(|| damaged("lacks a mark"))?;
        let items = self.stack.split_off(mark);
        Ok(items.into_iter().flatten().collect())
    }

    fn remember(&mut self, key: u32) -> Read<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Read<()> {
        let id = *self.memo.get(&key).ok_or_else(|| damaged("recalls a value that it never had"))?;
        self.stack.push(Some(id));
        Ok(())
    }

    fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        self.rest.split_off(..count).ok_or_else(|| damaged("ends early"))
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    /// A length of N bytes.
    fn length<const N: usize>(&mut self) -> Read<usize> {
        let mut all = [0; 8];
        all[..N].copy_from_slice(&self.array::<N>()?);
        usize::try_from(u64::from_le_bytes(all)).map_err(|_| damaged("ends early"))
    }

    fn line(&mut self) -> Read<&'a str> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("ends early"))?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| damaged("has a text that is not UTF-8"))
    }
}

/// Keys and values that alternate.
fn pairs(items: Vec<Id>) -> Read<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    } else {
        Err(damaged("has a key without a value"))
    }
}

/// A character as it can stand in a message of one line.
fn plain(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

fn refused_instruction(code: u8) -> String {
    let name = match code {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        b'I' | b'L' | b'F' | b'S' | b'V' | b'p' | b'g' => {
            return "has a pickle of protocol 0, which PyTorch does not write: save it again with torch.save"
                .to_owned();
        }
        other => return damaged(&format!("has the unknown instruction {other:#04x}")),
    };
    format!(
        "has the pickle instruction {name}, which is not part of a state dict: in Python, load it and save its weights \
         alone with torch.save(model.state_dict(), FILE)"
    )
}

#[cfg(test)]
mod tests;
