//! Pickles of plain data, of tensors, and of things that are refused.

use super::*;

#[track_caller]
fn check_refused(bytes: &[u8], part: &str) {
    let reason = Pickle::read(bytes).map(|_| ()).unwrap_err();
    assert!(reason.contains(part) && !reason.contains('\n'), "{reason}");
}

/// What Python prints for plain data.
fn shown(pickle: &Pickle, id: Id) -> String {
    let list = |ids: &[Id]| ids.iter().map(|id| shown(pickle, *id)).collect::<Vec<_>>().join(", ");
    match pickle.node(id) {
        Node::Nothing => "None".to_owned(),
        Node::Bool(value) => value.to_string(),
        Node::Int(value) => value.to_string(),
        Node::Float(value) => value.to_string(),
        Node::Text(text) => format!("{text:?}"),
        Node::Tuple(items) => format!("({})", list(items)),
        Node::List(items) => format!("[{}]", list(items)),
        Node::Dict(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| format!("{}: {}", shown(pickle, *key), shown(pickle, *value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

#[track_caller]
fn check(bytes: &[u8], want: &str) {
    let pickle = Pickle::read(bytes).unwrap();
    assert_eq!(shown(&pickle, pickle.root), want);
}

#[test]
fn plain_data_of_protocols_2_and_4_is_read() {
    // pickle.dumps({"a": [1, -2, 300, 70000, 2**40, True, None], "b": (0.5,)}, 2) of Python 3.11, without the memo.
    check(
        b"\x80\x02}(X\x01\0\0\0a](K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\0\x8a\x06\0\0\0\0\0\x01\x88NeX\x01\0\0\0bG?\xe0\0\0\0\0\0\0\x85u.",
        "{\"a\": [1, -2, 300, 70000, 1099511627776, true, None], \"b\": (0.5)}",
    );
    // pickle.dumps([("x", "x")], 4): the second x is recalled.
    check(b"\x80\x04\x95\x0d\0\0\0\0\0\0\0]\x94\x8c\x01x\x94h\x01\x86\x94a.", "[(\"x\", \"x\")]");
}

#[test]
fn nothing_is_called() {
    // os.system("x") as pickle writes it in protocols 0 to 2 and 4, and by INST.
    check_refused(
        b"cposix\nsystem\nX\x01\0\0\0x\x85R.",
        "contains posix.system, which is not part of a state dict",
    );
    check_refused(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.", "contains posix.system");
    check_refused(b"(X\x01\0\0\0xiposix\nsystem\n.", "the pickle instruction INST");
    check_refused(b"cbuiltins\neval\n.", "contains builtins.eval");
    check_refused(b"c__main__\nGPTConfig\n)\x81.", "contains __main__.GPTConfig");
    check_refused(b"cos\nsys\rtem\n.", "contains os.sys?tem");
    check_refused(b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ");
    check_refused(b"ccollections\nOrderedDict\nK\x01\x85R.", "with wrong arguments");
    check_refused(b"X\x01\0\0\0x)R.", "calls a value that is not a function");
}

#[test]
fn damage_is_reported() {
    check_refused(b"", "ends early");
    check_refused(b"X\xff\xff\xff\x7fx.", "ends early");
    check_refused(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffx.", "ends early");
    check_refused(b".", "takes from an empty stack");
    check_refused(b"(.", "takes from an empty stack");
    check_refused(b"K\x01u.", "lacks a mark");
    check_refused(b"}(K\x01u.", "has a key without a value");
    check_refused(b"h\x07.", "recalls a value that it never had");
    check_refused(b"I1\n.", "protocol 0");
    check_refused(b"\xff.", "unknown instruction 0xff");
    check_refused(b"X\x02\0\0\0\xc3\x28.", "not UTF-8");
    check_refused(b"K\x01K\x02a.", "adds elements to a value that has none");
}

#[test]
fn a_value_that_contains_itself_takes_no_more_memory_than_any_other() {
    // x = []; x += [x, x], 40 times.
    let mut bytes = b"]q\0".to_vec();
    for _ in 0..40 {
        bytes.extend_from_slice(b"(h\0h\0e");
    }
    bytes.push(b'.');
    let pickle = Pickle::read(&bytes).unwrap();
    assert_eq!(pickle.nodes.len(), 1);
    assert!(matches!(pickle.root(), Node::List(items) if items.len() == 80));
}

#[test]
fn tensors_are_views_of_storages() {
    let reference = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";
    let tensor = |shape: &[u8]| {
        let mut bytes = b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
        bytes.extend_from_slice(reference);
        bytes.extend_from_slice(shape);
        bytes.extend_from_slice(b"\x89NtR.");
        bytes
    };
    let pickle = Pickle::read(&tensor(b"K\x01K\x02K\x02\x86K\x02K\x01\x86")).unwrap();
    let storage = Storage { number: Number::F32, key: "0".to_owned(), len: 6 };
    let want = Tensor { storage, offset: 1, shape: vec![2, 2], strides: vec![2, 1] };
    assert!(matches!(pickle.root(), Node::Tensor(tensor) if *tensor == want));
    check_refused(&tensor(b"K\x01K\x02K\x02\x86K\x02\x85"), "with an invalid shape");
    check_refused(&tensor(b"K\x01J\xff\xff\xff\xff\x85K\x01\x85"), "with an invalid shape");
    check_refused(b"K\x01Q.", "not a storage");
}
