use super::*;

fn minimal() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 300, "rms_norm_eps": 1e-5, "eos_token_id": [2, 3]
    })
}

/// [`minimal`] of a family with other values of some keys.
fn changed(family: Family, changes: Value) -> Result<LlamaConfig, ConfigError> {
    let mut config = minimal();
    config["model_type"] = family.model_type().into();
    config["architectures"] = json!([family.architecture()]);
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    LlamaConfig::from_json(&config.to_string(), None)
}

fn refused(family: Family, changes: Value) -> String {
    changed(family, changes).unwrap_err().to_string()
}

fn with(field: &str, value: Value) -> String {
    refused(Family::Llama, json!({field: value}))
}

#[test]
fn reads_sizes_and_joins_end_tokens() {
    let config = LlamaConfig::from_json(
        &minimal().to_string(),
        Some(r#"{"eos_token_id": 3, "bos_token_id": 1}"#),
    )
    .unwrap();
    assert_eq!(config.head_dim, 16);
    assert_eq!(config.eos_token_ids, [2, 3]);
    assert_eq!(config.group_size(), 2);
    assert!(!config.tie_word_embeddings);
    let again = LlamaConfig::from_json(&config.to_json().to_string(), None).unwrap();
    assert_eq!(again, config);
}

#[test]
fn every_family_reads_back_what_it_writes() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512
    });
    for (family, changes) in [
        (
            Family::Llama,
            json!({"rope_scaling": llama3, "attention_bias": true, "mlp_bias": true}),
        ),
        (Family::Mistral, json!({"sliding_window": 7, "head_dim": 8})),
        (Family::Mistral, json!({"sliding_window": null})),
        (Family::Qwen2, json!({"tie_word_embeddings": true})),
        (
            Family::Qwen2,
            json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 1}),
        ),
        (
            Family::Qwen3,
            json!({"head_dim": 24, "attention_bias": true}),
        ),
        (
            Family::Gemma3,
            json!({
                "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 5,
                "sliding_window_pattern": 2, "rope_theta": 500_000, "rope_local_base_freq": 2e4
            }),
        ),
        (
            Family::Gemma3,
            json!({
                "layer_types": ["full_attention", "full_attention"],
                "rope_scaling": llama3, "tie_word_embeddings": false
            }),
        ),
    ] {
        let config = changed(family, changes).unwrap();
        let again = LlamaConfig::from_json(&config.to_json().to_string(), None).unwrap();
        assert_eq!(again, config);
        assert_eq!(again.family, family);
    }
}

#[test]
fn families_differ_in_biases_norms_and_windows() {
    let llama = changed(Family::Llama, json!({})).unwrap();
    assert!(
        Module::ALL
            .into_iter()
            .all(|module| !llama.has_bias(module))
    );
    assert!(!llama.has_query_key_norm());
    let llama = changed(Family::Llama, json!({"attention_bias": true})).unwrap();
    assert!(llama.has_bias(Module::OProj) && !llama.has_bias(Module::UpProj));

    let mistral = changed(Family::Mistral, json!({"sliding_window": 5})).unwrap();
    assert_eq!((mistral.window(0), mistral.window(1)), (Some(5), Some(5)));

    let qwen2 = changed(Family::Qwen2, json!({"sliding_window": 5})).unwrap();
    assert!(qwen2.has_bias(Module::VProj) && !qwen2.has_bias(Module::OProj));
    assert_eq!(qwen2.window(0), None, "use_sliding_window is false");
    let types = json!(["sliding_attention", "full_attention"]);
    let changes = json!({
        "sliding_window": 5, "use_sliding_window": true, "max_window_layers": 2,
        "layer_types": types
    });
    let qwen2 = changed(Family::Qwen2, changes).unwrap();
    assert_eq!((qwen2.window(0), qwen2.window(1)), (Some(5), None));

    let qwen3 = changed(Family::Qwen3, json!({"head_dim": 32})).unwrap();
    assert!(qwen3.has_query_key_norm() && !qwen3.has_bias(Module::QProj));
    assert_eq!((qwen3.head_dim, qwen3.query_width()), (32, 128));
    assert!(!qwen3.has_output_norms() && !qwen3.has_norms_above_one());
    assert_eq!(qwen3.embedding_scale(), None);
    assert_eq!(qwen3.activation(), Activation::Silu);

    let gemma3 = changed(Family::Gemma3, json!({"query_pre_attn_scalar": 64})).unwrap();
    assert!(gemma3.has_query_key_norm() && gemma3.has_output_norms());
    assert!(gemma3.has_norms_above_one() && gemma3.tie_word_embeddings);
    assert_eq!(gemma3.embedding_scale(), Some(8.0));
    assert_eq!(gemma3.score_scale(), 0.125);
    assert_eq!(gemma3.activation(), Activation::GeluTanh);
}

/// The keys of Gemma 3 1B's file, with fewer layers.
#[test]
fn gemma_3s_older_and_newer_files_are_one_configuration() {
    let older = json!({
        "num_hidden_layers": 8, "attn_logit_softcapping": null, "cache_implementation": "hybrid",
        "final_logit_softcapping": null, "head_dim": 256, "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 10_000,
        "rope_scaling": null, "rope_theta": 1_000_000, "sliding_window": 512,
        "sliding_window_pattern": 6
    });
    let older = changed(Family::Gemma3, older).unwrap();
    let sliding: Vec<usize> = (0..8)
        .filter(|layer| older.window(*layer).is_some())
        .collect();
    assert_eq!(sliding, [0, 1, 2, 3, 4, 6, 7]);
    assert_eq!(older.window(7), Some(512));
    assert_eq!((older.rope_theta, older.local_rope_theta), (1e6, Some(1e4)));
    let types: Vec<&str> = (0..8)
        .map(|layer| match layer {
            5 => "full_attention",
            _ => "sliding_attention",
        })
        .collect();
    let newer = json!({
        "num_hidden_layers": 8, "sliding_window": 512, "layer_types": types,
        "use_bidirectional_attention": false, "_sliding_window_pattern": 6,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}
        }
    });
    assert_eq!(changed(Family::Gemma3, newer).unwrap(), older);
    let bare = changed(Family::Gemma3, json!({"num_hidden_layers": 8})).unwrap();
    assert_eq!(bare.window(0), Some(4096));
    assert_eq!((bare.rope_theta, bare.local_rope_theta), (1e6, Some(1e4)));
    let theta = json!({"rope_parameters": {"sliding_attention": {"rope_theta": 5e3}}});
    let theta = changed(Family::Gemma3, theta).unwrap();
    assert_eq!((theta.rope_theta, theta.local_rope_theta), (1e6, Some(5e3)));
}

/// What transformers takes where a key is missing; a hand-written file may leave it out.
#[test]
fn absent_keys_have_the_familys_defaults() {
    let mut config = minimal();
    config["model_type"] = "mistral".into();
    config["architectures"] = Value::Null;
    config["num_attention_heads"] = 16.into();
    config
        .as_object_mut()
        .unwrap()
        .remove("num_key_value_heads");
    let mistral = LlamaConfig::from_json(&config.to_string(), None).unwrap();
    assert_eq!(mistral.num_key_value_heads, 8);
    assert_eq!(mistral.max_position_embeddings, 131_072);
    assert_eq!(mistral.window(1), Some(4096));
    config["num_key_value_heads"] = Value::Null;
    let mistral = LlamaConfig::from_json(&config.to_string(), None).unwrap();
    assert_eq!(mistral.num_key_value_heads, 16);
    let qwen3 = changed(Family::Qwen3, json!({})).unwrap();
    assert_eq!(
        (qwen3.head_dim, qwen3.max_position_embeddings),
        (128, 32_768)
    );
}

#[test]
fn both_spellings_of_llama3_and_the_newer_key_are_one_rope() {
    let scaling = |kind: &str| {
        json!({
            kind: "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        })
    };
    let older = changed(
        Family::Llama,
        json!({"rope_scaling": scaling("type"), "rope_theta": 500_000.0}),
    )
    .unwrap();
    let old = changed(
        Family::Llama,
        json!({"rope_scaling": scaling("rope_type"), "rope_theta": 500_000.0}),
    )
    .unwrap();
    let mut parameters = scaling("rope_type");
    parameters["rope_theta"] = 500_000.0.into();
    let new = changed(Family::Llama, json!({"rope_parameters": parameters})).unwrap();
    assert_eq!(older, old);
    assert_eq!(old, new);
    let rope = new.rope_scaling.unwrap();
    assert_eq!((rope.factor, rope.original_positions), (8.0, 8192));
    assert_eq!(new.rope_theta, 500_000.0);
}

#[test]
fn both_keys_of_a_rope_have_to_say_the_same() {
    let scaling = |factor: f64| {
        json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        })
    };
    let both = |factor| json!({"rope_scaling": scaling(8.0), "rope_parameters": scaling(factor)});
    let config = changed(Family::Llama, both(8.0)).unwrap();
    assert_eq!(config.rope_scaling.unwrap().factor, 8.0);
    let text = refused(Family::Llama, both(4.0));
    assert!(
        text.starts_with("rope_parameters")
            && text.ends_with("supported: what `rope_scaling` says"),
        "{text}"
    );
    let unlike = json!({"rope_scaling": scaling(8.0), "rope_parameters": {"rope_type": "default"}});
    assert!(refused(Family::Llama, unlike).starts_with("rope_parameters"));
}

#[test]
fn what_is_not_supported_is_named() {
    assert_eq!(
        with("model_type", json!("gpt2")),
        "model_type `gpt2` is not supported; supported: `llama`, `mistral`, `qwen2`, `qwen3`, `gemma3_text`"
    );
    for kind in ["gemma", "gemma2", "gemma3", "gemma3n"] {
        let text = with("model_type", json!(kind));
        assert!(text.starts_with(&format!("model_type `{kind}` is not supported")));
    }
    for (field, value) in [
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 8.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ("rope_parameters", json!({"mrope_section": [1, 2, 3]})),
        ("hidden_act", json!("gelu")),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("architectures", json!(["MistralForCausalLM"])),
        ("quantization_config", json!({"bits": 4})),
        ("torch_dtype", json!("float8_e4m3fn")),
        ("attention_dropout", json!(0.1)),
        ("attn_logit_softcapping", json!(50.0)),
        ("partial_rotary_factor", json!(0.5)),
        ("sliding_window", json!(4096)),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
    ] {
        let text = with(field, value);
        assert!(
            text.starts_with(field) && text.contains("not supported"),
            "{text}"
        );
    }
    for (family, field, value) in [
        (Family::Mistral, "attention_bias", json!(true)),
        (
            Family::Mistral,
            "layer_types",
            json!(["full_attention", "full_attention"]),
        ),
        (Family::Qwen2, "mlp_bias", json!(true)),
        (
            Family::Qwen3,
            "layer_types",
            json!(["chunked_attention", "full_attention"]),
        ),
        (Family::Qwen3, "query_pre_attn_scalar", json!(64)),
        (Family::Gemma3, "hidden_activation", json!("gelu")),
        (Family::Gemma3, "attn_logit_softcapping", json!(50.0)),
        (Family::Gemma3, "final_logit_softcapping", json!(30.0)),
        (Family::Gemma3, "use_bidirectional_attention", json!(true)),
        (Family::Gemma3, "mlp_bias", json!(true)),
        (
            Family::Gemma3,
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 8.0}),
        ),
        (
            Family::Gemma3,
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 5e5}),
        ),
        (
            Family::Gemma3,
            "rope_parameters",
            json!({"sliding_attention": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0
            }}),
        ),
    ] {
        let text = refused(family, json!({field: value}));
        assert!(
            text.starts_with(field) && text.contains("not supported"),
            "{text}"
        );
    }
    assert!(with("num_key_value_heads", json!(3)).contains("must divide num_attention_heads 4"));
    let text = refused(Family::Gemma3, json!({"sliding_window": null}));
    assert!(
        text.starts_with("sliding_window in config.json is missing"),
        "{text}"
    );
    assert!(with("hidden_size", json!(0)).contains("hidden_size in config.json is 0"));
    assert!(with("vocab_size", Value::Null).contains("vocab_size in config.json is missing"));
    assert!(
        with(
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0})
        )
        .contains("low_freq_factor in config.json is missing")
    );
}

#[test]
fn half_precision_and_the_activations_second_name_are_read() {
    let changes = json!({"torch_dtype": "float16", "hidden_act": "swish"});
    assert!(changed(Family::Llama, changes).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = LlamaConfig::load(dir.path()).unwrap_err().to_string();
    assert!(text.starts_with("config.json not found in "), "{text}");
}
