//! The chart's admission policy lets the users of `operatorUsers` write status, for an operator that
//! runs from a shell: the policy's own expression, with the list as Helm puts it in.

use cel::{Context, Program, Value};
use serde_json::json;

/// The expression that says whether the policy concerns a request, for these values.
fn concerns(operator_users: &[&str]) -> String {
    let chart = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../charts/graftwork/templates/admission.yaml"
    );
    let text = std::fs::read_to_string(chart).unwrap();
    let (_, rest) = text.split_once("- name: not-the-operator").unwrap();
    let line = rest
        .lines()
        .find(|line| line.contains("expression:"))
        .unwrap();
    let values = "(concat (list $operator) $root.Values.operatorUsers | toJson)";
    assert!(line.contains(values), "{line}");
    let (_, format) = line.split_once("printf \"").unwrap();
    let (format, _) = format.split_once('"').unwrap();
    let account = "system:serviceaccount:graftwork-system:graftwork";
    let names = [&[account], operator_users].concat();
    format.replace("%s", &json!(names).to_string())
}

fn is_concerned(user: &str, operator_users: &[&str]) -> bool {
    let program = Program::compile(&concerns(operator_users)).unwrap();
    let mut context = Context::default();
    let request = json!({"userInfo": {"username": user}});
    context.add_variable("request", request).unwrap();
    match program.execute(&context).unwrap() {
        Value::Bool(concerned) => concerned,
        other => panic!("not a truth value: {other:?}"),
    }
}

#[test]
fn only_the_operator_and_the_users_of_operator_users_write_status() {
    let account = "system:serviceaccount:graftwork-system:graftwork";
    for (user, users, concerned) in [
        (account, &[][..], false),
        ("ann", &[][..], true),
        ("ann", &["ann", "o'neil \"x\""][..], false),
        ("o'neil \"x\"", &["ann", "o'neil \"x\""][..], false),
        ("an", &["ann"][..], true),
        ("system:serviceaccount:other:graftwork", &["ann"][..], true),
    ] {
        assert_eq!(is_concerned(user, users), concerned, "{user} of {users:?}");
    }
}
