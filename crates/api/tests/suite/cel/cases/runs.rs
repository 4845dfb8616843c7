//! Rules of TrainingRuns.

use serde_json::{Value, json};

use super::{Case, case, immutable};

/// All of them.
pub fn cases() -> Vec<Case> {
    [run_cases(), hyperparameter_cases(), immutable_run_cases()]
        .into_iter()
        .flatten()
        .collect()
}

fn run_cases() -> Vec<Case> {
    let lora = |lora: Value| json!({"spec": {"method": {"lora": lora}}});
    let objective = |objective: Value| {
        let method = json!({"lora": {"dropout": "0"}});
        json!({"spec": {"objective": objective, "method": method}})
    };
    let method = |method: Value| json!({"spec": {"method": method}});
    vec![
        case(
            "trainingruns",
            "alpha is above 0 and at most 65536",
            lora(json!({"alpha": "65536"})),
            lora(json!({"alpha": "0"})),
        ),
        case(
            "trainingruns",
            "dropout is at least 0 and below 1",
            lora(json!({"dropout": "0.9"})),
            lora(json!({"dropout": "1"})),
        ),
        case(
            "trainingruns",
            "subject belongs to type Evaluate and is needed there",
            json!({"spec": {"adapterRef": null, "method": {
                "type": "Evaluate", "subject": {"adapterRef": {"name": "topics"}, "version": 3}
            }}}),
            json!({"spec": {"adapterRef": null, "method": {"type": "Evaluate"}}}),
        ),
        case(
            "trainingruns",
            "adapterRef, initialAdapterRef and objective do not go with method type Evaluate: leave them out",
            json!({"spec": {"adapterRef": null}}),
            method(json!({
                "type": "Evaluate", "subject": {"adapterRef": {"name": "topics"}, "version": 3}
            })),
        ),
        case(
            "trainingruns",
            "output belongs to type Full and is needed there",
            json!({"spec": {"adapterRef": null, "method": {
                "type": "Full", "output": {"uri": "pvc://models/topics"}
            }}}),
            json!({"spec": {"adapterRef": null, "method": {"type": "Full"}}}),
        ),
        case(
            "trainingruns",
            "adapterRef, initialAdapterRef and objective DPO do not go with method type Full: leave them out",
            json!({"spec": {"adapterRef": null}}),
            method(json!({"type": "Full", "output": {"uri": "pvc://models/topics"}})),
        ),
        case(
            "trainingruns",
            "method.lora.dropout is 0 under objective DPO, whose reference drops nothing",
            objective(json!({"type": "DPO"})),
            json!({"spec": {"objective": {"type": "DPO"}, "method": {"lora": {"dropout": "0.05"}}}}),
        ),
        case(
            "trainingruns",
            "beta belongs to type DPO: leave it out",
            objective(json!({"type": "DPO", "beta": "0.1"})),
            objective(json!({"type": "SFT", "beta": "0.1"})),
        ),
        case(
            "trainingruns",
            "beta is above 0 and at most 100",
            objective(json!({"type": "DPO", "beta": "100"})),
            objective(json!({"type": "DPO", "beta": "0"})),
        ),
        case(
            "trainingruns",
            "quantization belongs to type QLoRA and is needed there",
            method(json!({"type": "QLoRA", "quantization": "Q4_K"})),
            method(json!({"type": "QLoRA"})),
        ),
        case(
            "trainingruns",
            "quantization belongs to type QLoRA and is needed there",
            method(json!({"type": "LoRA"})),
            method(json!({"type": "LoRA", "quantization": "Q8_0"})),
        ),
    ]
}

fn hyperparameter_cases() -> Vec<Case> {
    let hyper = |hyper: Value| json!({"spec": {"hyperparameters": hyper}});
    let multiple = "batchSize, which is 32 where it is left out, is a multiple of microBatchSize";
    // The example rises over 20 of 400 steps.
    let warmup = "warmupSteps is at most maximumSteps";
    vec![
        case(
            "trainingruns",
            "epochs and maximumSteps exclude each other: leave one of them out",
            hyper(json!({"epochs": 2, "maximumSteps": null})),
            hyper(json!({"epochs": 2})),
        ),
        case(
            "trainingruns",
            "microBatchSize is at most batchSize, which is 32 where it is left out",
            hyper(json!({"batchSize": 8, "microBatchSize": 8})),
            hyper(json!({"batchSize": 8, "microBatchSize": 16})),
        ),
        case(
            "trainingruns",
            multiple,
            hyper(json!({"batchSize": 12, "microBatchSize": 4})),
            hyper(json!({"batchSize": 12, "microBatchSize": 5})),
        ),
        case(
            "trainingruns",
            multiple,
            hyper(json!({"batchSize": 4, "microBatchSize": null})),
            hyper(json!({"batchSize": 4, "microBatchSize": 3})),
        ),
        case(
            "trainingruns",
            warmup,
            hyper(json!({"warmupSteps": 400})),
            hyper(json!({"warmupSteps": 401})),
        ),
        case(
            "trainingruns",
            warmup,
            hyper(json!({"warmupSteps": 401, "epochs": 1, "maximumSteps": null})),
            hyper(json!({"maximumSteps": 19})),
        ),
        case(
            "trainingruns",
            "earlyStopping needs validateEverySteps",
            hyper(json!({"earlyStopping": {"patience": 3}, "validateEverySteps": 100})),
            hyper(json!({"earlyStopping": {"patience": 3}})),
        ),
        case(
            "trainingruns",
            "checkpoint.keepBest needs hyperparameters.validateEverySteps",
            json!({"spec": {
                "checkpoint": {"keepBest": true}, "hyperparameters": {"validateEverySteps": 100}
            }}),
            json!({"spec": {"checkpoint": {"keepBest": true}}}),
        ),
        case(
            "trainingruns",
            "learningRate is above 0 and at most 1",
            hyper(json!({"learningRate": "8e-5"})),
            hyper(json!({"learningRate": "0.0"})),
        ),
        case(
            "trainingruns",
            "learningRate is above 0 and at most 1",
            hyper(json!({"learningRate": "1"})),
            hyper(json!({"learningRate": "1.01"})),
        ),
        case(
            "trainingruns",
            "weightDecay is at most 1",
            hyper(json!({"weightDecay": "0.1"})),
            hyper(json!({"weightDecay": "1.1"})),
        ),
        case(
            "trainingruns",
            "maximumGradientNorm is at most 1000",
            hyper(json!({"maximumGradientNorm": "0"})),
            hyper(json!({"maximumGradientNorm": "1e4"})),
        ),
    ]
}

fn immutable_run_cases() -> Vec<Case> {
    let lora = |lora: Value| json!({"spec": {"method": {"lora": lora}}});
    let objective = |objective: Value| json!({"spec": {"objective": objective}});
    let hyper = |hyper: Value| json!({"spec": {"hyperparameters": hyper}});
    vec![
        immutable(
            "baseModel is immutable: make a new TrainingRun",
            json!({"spec": {"baseModel": {"uri": "pvc://models/other"}}}),
        ),
        immutable(
            "datasetRef is immutable: make a new TrainingRun",
            json!({"spec": {"datasetRef": {"version": 2}}}),
        ),
        immutable(
            "adapterRef is immutable: make a new TrainingRun",
            json!({"spec": {"adapterRef": null}}),
        ),
        immutable(
            "adapterRef is immutable: make a new TrainingRun",
            json!({"spec": {"adapterRef": {"name": "other"}}}),
        ),
        immutable(
            "initialAdapterRef is immutable: make a new TrainingRun",
            json!({"spec": {"initialAdapterRef": {"name": "topics", "version": 2}}}),
        ),
        immutable(
            "objective is immutable: make a new TrainingRun",
            objective(json!({"type": "DPO"})),
        ),
        immutable(
            "method is immutable: make a new TrainingRun",
            lora(json!({"rank": 16})),
        ),
        immutable(
            "hyperparameters is immutable: make a new TrainingRun",
            hyper(json!({"seed": 8})),
        ),
        immutable(
            "compute is immutable: make a new TrainingRun",
            json!({"spec": {"compute": {"profile": "large"}}}),
        ),
        immutable(
            "checkpoint is immutable: make a new TrainingRun",
            json!({"spec": {"checkpoint": {"keep": 5}}}),
        ),
        immutable(
            "evaluation is immutable: make a new TrainingRun",
            json!({"spec": {"evaluation": {"maximumRows": 5}}}),
        ),
        immutable(
            "limits is immutable: make a new TrainingRun",
            json!({"spec": {"limits": {"retries": 5}}}),
        ),
    ]
}
