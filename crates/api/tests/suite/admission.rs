//! The chart's admission policy: who may write what into `status.commands`. Its three expressions are
//! evaluated as the template has them; only the fields that the operator writes are compared by
//! expressions that Helm prints.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics fails"
)]

use std::path::PathBuf;

use kube_cel::{AdmissionRequest, VapEvaluator, VapExpression};
use serde_json::{Value, json};

const TEMPLATE: &str = "charts/graftwork/templates/admission.yaml";

/// The folded expressions of the template, with status itself in place of its variables.
fn expressions() -> Vec<VapExpression> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let template = std::fs::read_to_string(root.join(TEMPLATE)).unwrap();
    let folded = template.split("- expression: >-\n").skip(1);
    folded
        .map(|rest| {
            let lines = rest.lines();
            let lines: Vec<_> = lines
                .take_while(|line| !line.trim_start().starts_with("message"))
                .map(str::trim)
                .collect();
            let expression = lines.join(" ");
            assert!(!expression.contains("{{"), "{expression}");
            VapExpression {
                expression: expression
                    .replace("variables.new", "object")
                    .replace("variables.old", "oldObject"),
                message: None,
                message_expression: None,
            }
        })
        .collect()
}

/// Whether `user` may change status from `old` to `new`.
fn may(user: &str, old: &Value, new: &Value) -> bool {
    let expressions = expressions();
    assert_eq!(expressions.len(), 3, "{TEMPLATE}");
    let request = AdmissionRequest {
        operation: "UPDATE".to_owned(),
        username: user.to_owned(),
        ..AdmissionRequest::default()
    };
    let evaluator = VapEvaluator::builder()
        .object(new.clone())
        .old_object(old.clone())
        .request(request)
        .build();
    let results = evaluator.evaluate(&expressions);
    for result in &results {
        let message = result.message.as_deref().unwrap_or_default();
        assert!(
            result.passed || message.ends_with("evaluated to false"),
            "{message}"
        );
    }
    results.iter().all(|result| result.passed)
}

fn command(id: &str, user: &str) -> Value {
    saying("Approve", id, user)
}

fn saying(verb: &str, id: &str, user: &str) -> Value {
    json!({"id": id, "verb": verb, "digest": "sha256:1", "user": user})
}

fn status(commands: &[(&str, Value)], answers: &[(&str, &str)]) -> Value {
    let mut status = json!({"readyReplicas": 1});
    for (target, command) in commands {
        status["commands"][target] = command.clone();
    }
    for (target, id) in answers {
        status["answers"][target] = json!({"id": id, "outcome": "Accepted"});
    }
    status
}

#[test]
fn people_write_commands_in_their_own_name_only() {
    let nothing = status(&[], &[]);
    let anns = status(&[("version/1", command("x", "ann"))], &[]);
    assert!(may("ann", &nothing, &anns));
    assert!(!may("bob", &nothing, &anns), "in another's name");
    assert!(may("bob", &anns, &anns), "what is there may stay");
    let both = status(
        &[
            ("version/1", command("x", "ann")),
            ("version/2", command("y", "bob")),
        ],
        &[],
    );
    assert!(may("bob", &anns, &both));
    assert!(!may("ann", &anns, &both));
    let without_user = status(&[("version/1", json!({"id": "x"}))], &[]);
    assert!(!may("ann", &nothing, &without_user));
}

#[test]
fn nobody_takes_back_or_changes_anothers_command_before_it_is_answered() {
    let target = "version/1";
    let nothing = status(&[], &[]);
    let open = status(&[(target, command("x", "ann"))], &[]);
    let taken_over = status(&[(target, command("z", "bob"))], &[]);
    assert!(!may("bob", &open, &nothing), "removed");
    assert!(!may("bob", &open, &json!({"commands": {}})), "removed");
    assert!(!may("bob", &open, &taken_over), "replaced");
    assert!(may("ann", &open, &nothing), "one's own may go");
    assert!(may(
        "ann",
        &open,
        &status(&[(target, command("y", "ann"))], &[])
    ));
    // The answer to the command before says nothing about this one.
    let stale = |commands: &[(&str, Value)]| status(commands, &[(target, "w")]);
    let open = stale(&[(target, command("x", "ann"))]);
    assert!(!may("bob", &open, &stale(&[])));
    assert!(!may("bob", &open, &stale(&[(target, command("z", "bob"))])));
}

#[test]
fn anyone_may_stop_what_anothers_unanswered_command_would_begin() {
    let target = "adapter/expenses";
    let with = |verb: &str, user: &str| status(&[(target, saying(verb, user, user))], &[]);
    for (pending, verb, allowed) in [
        ("Promote", "Abort", true),
        ("Promote", "Pause", true),
        ("Approve", "Reject", true),
        ("Pause", "Abort", true),
        ("Abort", "Abort", true),
        ("Reject", "Reject", true),
        ("Abort", "Reject", false),
        ("Reject", "Abort", false),
        ("Promote", "Promote", false),
        ("Promote", "Resume", false),
        ("Promote", "Retry", false),
        ("Promote", "Rollback", false),
        ("Reject", "Approve", false),
        ("Abort", "Promote", false),
        ("Pause", "Resume", false),
        ("Abort", "Pause", false),
        ("Reject", "Pause", false),
    ] {
        let anns = with(pending, "ann");
        assert_eq!(
            may("bob", &anns, &with(verb, "bob")),
            allowed,
            "Bob's {verb} over Ann's {pending}"
        );
        assert!(
            !may("bob", &anns, &with(verb, "carl")),
            "{verb} over {pending} in another's name"
        );
    }
    let anns = with("Promote", "ann");
    let elsewhere = status(&[("adapter/other", saying("Abort", "bob", "bob"))], &[]);
    assert!(
        !may("bob", &anns, &elsewhere),
        "an Abort of something else takes nothing back"
    );
}

#[test]
fn an_unanswered_abort_or_reject_gives_way_only_to_the_same_one() {
    let target = "adapter/expenses";
    for verb in ["Abort", "Reject"] {
        let by = |user: &str, change: Value| {
            let mut command = saying(verb, user, user);
            let fields = change.as_object().unwrap().clone();
            command.as_object_mut().unwrap().extend(fields);
            status(&[(target, command)], &[])
        };
        for (anns, bobs, allowed) in [
            (json!({}), json!({"reason": "me too"}), true),
            (json!({"step": 2}), json!({"step": 2}), true),
            (json!({}), json!({"digest": "sha256:2"}), false),
            (json!({"step": 2}), json!({"step": 3}), false),
            (json!({"step": 2}), json!({}), false),
            (json!({}), json!({"step": 2}), false),
        ] {
            let case = format!("{verb} with {bobs} over {anns}");
            let old = by("ann", anns);
            let new = by("bob", bobs);
            assert_eq!(may("bob", &old, &new), allowed, "{case}");
        }
        // One's own may be corrected.
        let old = by("ann", json!({"digest": "sha256:2"}));
        assert!(may("ann", &old, &by("ann", json!({"id": "y", "step": 1}))));
    }
    let promote = status(&[(target, saying("Promote", "x", "ann"))], &[]);
    let mut abort = saying("Abort", "y", "bob");
    abort["digest"] = json!("sha256:2");
    assert!(
        may("bob", &promote, &status(&[(target, abort)], &[])),
        "what would begin something gives way whatever is meant"
    );
}

#[test]
fn an_answered_command_makes_room_for_anothers() {
    let target = "version/1";
    let answered = |commands: &[(&str, Value)]| status(commands, &[(target, "x")]);
    let old = answered(&[(target, command("x", "ann"))]);
    assert!(may("bob", &old, &answered(&[])));
    assert!(may(
        "bob",
        &old,
        &answered(&[(target, command("z", "bob"))])
    ));
    assert!(
        !may("bob", &old, &answered(&[(target, command("z", "ann"))])),
        "still in one's own name"
    );
}

#[test]
fn another_command_under_an_answered_id_would_be_answered_already() {
    let target = "version/1";
    let answered = |command: Value| status(&[(target, command)], &[(target, "x")]);
    let old = answered(command("x", "ann"));
    assert!(may("ann", &old, &old), "the same once more");
    assert!(!may("ann", &old, &answered(saying("Reject", "x", "ann"))));
    assert!(!may("bob", &old, &answered(command("x", "bob"))));
    let gone = status(&[], &[(target, "x")]);
    assert!(!may("ann", &gone, &old), "though the command was removed");
    assert!(may("ann", &old, &answered(saying("Reject", "y", "ann"))));
}
