//! pending
fn main(){}
