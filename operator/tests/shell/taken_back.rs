//! What others add where we alone write is taken out; what the API server fills in and what belongs to others
//! stays, and is no reason to write.

use graftwork_api::labels;
use graftwork_operator::controllers::carry_out;
use graftwork_operator::lease::Term;
use graftwork_operator_core::plan::{Actions, Child};
use http::Method;
use serde_json::{Value, json};

use crate::carry_out::{context, dataset};
use crate::fake_api::{Answer, FakeApi, Write};

fn metadata() -> Value {
    json!({
        "name": "x", "namespace": "team", "labels": {labels::MANAGED_BY: labels::OPERATOR},
        "ownerReferences": [{
            "apiVersion": "graftwork.dev/v1alpha1", "kind": "Dataset", "name": "x", "uid": "u", "controller": true,
        }],
    })
}

/// A Deployment and a ConfigMap are to be there.
fn wanted() -> Actions<graftwork_api::DatasetStatus> {
    let deployment = json!({
        "metadata": metadata(),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{
                    "name": "engine", "image": "i",
                    "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8081}},
                    "resources": {"limits": {"memory": "1024Mi"}},
                }]},
            },
        },
    });
    let map = json!({"metadata": metadata(), "data": {"config.json": "{}"}});
    Actions {
        apply: vec![
            Child::ConfigMap(Box::new(serde_json::from_value(map).unwrap())),
            Child::Deployment(Box::new(serde_json::from_value(deployment).unwrap())),
        ],
        ..Actions::default()
    }
}

fn entry(manager: &str, operation: &str, fields: Value) -> Value {
    json!({
        "manager": manager, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields,
        "time": "2026-11-20T08:00:00Z",
    })
}

fn of_template(fields: Value) -> Value {
    json!({"f:spec": {"f:template": {"f:spec": fields}}})
}

fn of_container(name: &str, fields: Value) -> Value {
    let mut containers = json!({});
    containers[format!("k:{{\"name\":\"{name}\"}}")] = fields;
    of_template(json!({"f:containers": containers}))
}

/// Both as the API server returns them after they were applied: defaults are filled in, and controllers have
/// written what is theirs.
struct Settled {
    deployment: Value,
    map: Value,
}

impl Settled {
    /// From what is sent where there is nothing yet.
    async fn new() -> Self {
        let api = FakeApi::new(take);
        let [map, deployment] = <[Write; 2]>::try_from(look(&api).await).unwrap();
        let mut settled = Self {
            deployment: deployment.body,
            map: map.body,
        };
        for object in [&mut settled.deployment, &mut settled.map] {
            object["metadata"]["uid"] = json!("uid");
            object["metadata"]["resourceVersion"] = json!("7");
            object["metadata"]["generation"] = json!(1);
        }
        let engine = json!({
            ".": {}, "f:name": {}, "f:image": {}, "f:readinessProbe": {"f:httpGet": {"f:path": {}, "f:port": {}}},
            "f:env": {"k:{\"name\":\"POD_NAME\"}": {".": {}, "f:name": {}, "f:valueFrom": {"f:fieldRef": {}}}},
            "f:resources": {"f:limits": {"f:memory": {}}},
        });
        let mut status = entry(
            "kube-controller-manager",
            "Update",
            json!({
                "f:metadata": {"f:annotations": {"f:deployment.kubernetes.io/revision": {}}},
                "f:status": {"f:replicas": {}},
            }),
        );
        status["subresource"] = json!("status");
        let mut scale = entry(
            "autoscaler",
            "Update",
            json!({"f:spec": {"f:replicas": {}}}),
        );
        scale["subresource"] = json!("scale");
        let restart = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {"f:restartedAt": {}}}}}});
        let deployment = &mut settled.deployment;
        deployment["metadata"]["managedFields"] = json!([
            entry(
                "graftwork-operator",
                "Apply",
                of_container("engine", engine)
            ),
            status,
            scale,
            entry("kubectl-rollout", "Update", restart),
        ]);
        deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("2");
        deployment["metadata"]["labels"]["theirs"] = json!("stays");
        deployment["spec"]["progressDeadlineSeconds"] = json!(600);
        deployment["spec"]["revisionHistoryLimit"] = json!(10);
        deployment["spec"]["strategy"] = json!({"type": "RollingUpdate"});
        deployment["status"] = json!({"replicas": 1});
        let template = &mut deployment["spec"]["template"];
        template["metadata"]["annotations"] = json!({"restartedAt": "today"});
        template["spec"]["dnsPolicy"] = json!("ClusterFirst");
        template["spec"]["restartPolicy"] = json!("Always");
        template["spec"]["schedulerName"] = json!("default-scheduler");
        template["spec"]["securityContext"] = json!({});
        template["spec"]["terminationGracePeriodSeconds"] = json!(30);
        let engine = &mut template["spec"]["containers"][0];
        engine["imagePullPolicy"] = json!("Always");
        engine["terminationMessagePath"] = json!("/dev/termination-log");
        engine["terminationMessagePolicy"] = json!("File");
        engine["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
        engine["readinessProbe"]["timeoutSeconds"] = json!(1);
        engine["readinessProbe"]["httpGet"]["scheme"] = json!("HTTP");
        engine["resources"]["limits"]["memory"] = json!("1Gi");
        settled.map["metadata"]["managedFields"] = json!([entry(
            "graftwork-operator",
            "Apply",
            json!({"f:data": {"f:config.json": {}}})
        )]);
        settled
    }

    fn api(&self) -> FakeApi {
        FakeApi::new(take)
            .with("deployments", vec![self.deployment.clone()])
            .with("configmaps", vec![self.map.clone()])
    }

    /// Somebody adds to the pod template.
    fn template(&mut self, manager: &str, fields: Value, add: impl FnOnce(&mut Value)) {
        add(&mut self.deployment["spec"]["template"]["spec"]);
        let managers = self.deployment["metadata"]["managedFields"].as_array_mut();
        managers.unwrap().push(entry(manager, "Update", fields));
    }
}

/// Takes everything.
fn take(_: &Method, _: &str, body: &Value) -> Answer {
    if body["metadata"]["managedFields"].is_array() {
        // What a merge patch sets to null is gone.
        let metadata =
            json!({"name": "x", "namespace": "team", "uid": "uid", "resourceVersion": "8"});
        return Answer::Object(json!({"metadata": metadata}));
    }
    Answer::Take
}

/// Writes of one look.
async fn look(api: &FakeApi) -> Vec<Write> {
    let context = context(api, Term::forever()).await;
    carry_out(&context, &dataset(), &wanted()).await.unwrap();
    api.writes()
}

fn lines(writes: &[Write]) -> Vec<String> {
    writes.iter().map(Write::line).collect()
}

#[tokio::test]
async fn defaults_of_the_api_server_and_what_others_may_hold_are_no_reason_to_write() {
    let settled = Settled::new().await;
    assert_eq!(lines(&look(&settled.api()).await), Vec::<String>::new());
}

#[tokio::test]
async fn what_others_add_to_a_pod_template_is_taken_out_once() {
    let sidecar = |settled: &mut Settled| {
        let fields = json!({".": {}, "f:name": {}, "f:image": {}, "f:imagePullPolicy": {}});
        settled.template("kubectl-edit", of_container("agent", fields), |spec| {
            let containers = spec["containers"].as_array_mut().unwrap();
            // Before ours, as the API server keeps what others put there.
            containers.insert(
                0,
                json!({"name": "agent", "image": "a", "imagePullPolicy": "Always"}),
            );
        });
    };
    let variable = |settled: &mut Settled| {
        let fields =
            json!({"f:env": {"k:{\"name\":\"DEBUG\"}": {".": {}, "f:name": {}, "f:value": {}}}});
        settled.template("kubectl-set", of_container("engine", fields), |spec| {
            let env = spec["containers"][0]["env"].as_array_mut().unwrap();
            env.push(json!({"name": "DEBUG", "value": "1"}));
        });
    };
    let placement = |settled: &mut Settled| {
        let fields = of_template(json!({"f:hostNetwork": {}, "f:nodeSelector": {}}));
        settled.template("kubectl-patch", fields, |spec| {
            spec["hostNetwork"] = json!(true);
            spec["nodeSelector"] = json!({"disk": "fast"});
        });
    };
    let additions: [&dyn Fn(&mut Settled); 3] = [&sidecar, &variable, &placement];
    for (index, add) in additions.into_iter().enumerate() {
        let mut settled = Settled::new().await;
        add(&mut settled);
        let writes = look(&settled.api()).await;
        assert_eq!(lines(&writes), ["PATCH deployments/x"; 2], "{index}");

        let handed_over = &writes[0].body["metadata"];
        assert_eq!(handed_over["resourceVersion"], "7", "of what was seen");
        let managers = handed_over["managedFields"].as_array().unwrap();
        let holders = managers.iter().filter(|entry| {
            let template = &entry["fieldsV1"]["f:spec"]["f:template"];
            template["f:spec"].is_object()
        });
        let holders: Vec<&Value> = holders.map(|entry| &entry["manager"]).collect();
        assert_eq!(holders, ["graftwork-operator"], "{index}");
        assert_eq!(
            handed_over["annotations"],
            json!({labels::CONTENT_HASH_ANNOTATION: null}),
            "a look after a crash applies, too"
        );

        // The apply holds nothing of theirs, so that the API server takes it out.
        let applied = &writes[1].body["spec"]["template"]["spec"];
        assert_eq!(applied.as_object().unwrap().len(), 1, "{applied}");
        assert_eq!(applied["containers"].as_array().unwrap().len(), 1);
        assert_eq!(applied["containers"][0]["env"].as_array().unwrap().len(), 1);

        let mut after = Settled::new().await;
        after.deployment["metadata"]["managedFields"] = handed_over["managedFields"].clone();
        assert_eq!(
            lines(&look(&after.api()).await),
            Vec::<String>::new(),
            "{index}"
        );
    }
}

#[tokio::test]
async fn what_was_made_ours_before_a_crash_is_taken_out_after_it() {
    let mut settled = Settled::new().await;
    let annotations = settled.deployment["metadata"]["annotations"].as_object_mut();
    annotations.unwrap().remove(labels::CONTENT_HASH_ANNOTATION);
    assert_eq!(lines(&look(&settled.api()).await), ["PATCH deployments/x"]);
}

#[tokio::test]
async fn a_key_that_others_add_to_a_configuration_is_taken_out() {
    let mut settled = Settled::new().await;
    settled.map["data"]["extra"] = json!("theirs");
    let managers = settled.map["metadata"]["managedFields"].as_array_mut();
    let theirs = entry(
        "kubectl-patch",
        "Update",
        json!({"f:data": {"f:extra": {}}}),
    );
    managers.unwrap().push(theirs);
    let writes = look(&settled.api()).await;
    assert_eq!(lines(&writes), ["PATCH configmaps/x"; 2]);
    assert_eq!(writes[1].body["data"], json!({"config.json": "{}"}));
}

#[tokio::test]
async fn a_look_at_what_is_old_by_now_waits_for_what_changed() {
    let mut settled = Settled::new().await;
    let fields = of_template(json!({"f:hostNetwork": {}}));
    settled.template("kubectl-patch", fields, |spec| {
        spec["hostNetwork"] = json!(true);
    });
    let api = FakeApi::new(|_, _, _| Answer::Status(409, "Conflict"))
        .with("deployments", vec![settled.deployment.clone()])
        .with("configmaps", vec![settled.map.clone()]);
    assert_eq!(lines(&look(&api).await), ["PATCH deployments/x"]);
}
