//! The recipe of a base model: everything that decides its weights but the text.

use graftwork_contract::run::Schedule;
use graftwork_model::config::{Family, LlamaConfig};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// `recipe.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipe {
    /// The model's name, for its card.
    pub name: String,
    /// What it is made of and may be used for, for its card.
    pub description: String,
    /// Licence of the weights, for its card.
    pub license: String,
    /// The architecture.
    pub model: Shape,
    /// Optimisation.
    pub training: TrainingRecipe,
}

/// A Llama's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shape {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub attention_heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
}

/// Optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainingRecipe {
    /// Tokens in all; the run ends with the batch that reaches them.
    pub tokens: u64,
    /// Tokens per optimiser step, about.
    pub batch_tokens: usize,
    /// Tokens per forward pass, about.
    pub micro_batch_tokens: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Course after the warm-up.
    pub schedule: Schedule,
    /// Steps with a rising rate.
    pub warmup_steps: u64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// Gradients are scaled down to this 2-norm.
    pub maximum_gradient_norm: f64,
    /// Of initialisation and order.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Steps between measurements of the held-out perplexity.
    pub evaluate_every_steps: u64,
}

impl Recipe {
    /// Parses and checks a recipe.
    ///
    /// # Errors
    /// [`Failure`] with [`graftwork_contract::exit::ExitCode::BadConfig`], naming the field.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let recipe: Self = serde_json::from_str(text)
            .map_err(|error| Failure::bad_config(format!("recipe: {error}")))?;
        let (model, training) = (&recipe.model, &recipe.training);
        let checks = [
            (
                model.vocabulary >= 300,
                "model.vocabulary must be at least 300: 256 bytes and the special tokens",
            ),
            (
                model.hidden_size > 0 && model.attention_heads > 0 && model.key_value_heads > 0,
                "model.hiddenSize and the numbers of heads must be above 0",
            ),
            (
                model.attention_heads > 0
                    && model.hidden_size.is_multiple_of(2 * model.attention_heads),
                "model.hiddenSize must be an even multiple of model.attentionHeads",
            ),
            (
                model.key_value_heads > 0
                    && model.attention_heads.is_multiple_of(model.key_value_heads),
                "model.attentionHeads must be a multiple of model.keyValueHeads",
            ),
            (
                model.layers > 0 && model.intermediate_size > 0,
                "model.layers and model.intermediateSize must be above 0",
            ),
            (model.context >= 8, "model.context must be at least 8"),
            (
                training.learning_rate > 0.0 && training.learning_rate <= 1.0,
                "training.learningRate must be above 0 and at most 1",
            ),
            (
                training.batch_tokens > 0 && training.micro_batch_tokens > 0,
                "training.batchTokens and training.microBatchTokens must be above 0",
            ),
            (training.tokens > 0, "training.tokens must be above 0"),
            (
                training.checkpoint_every_steps > 0 && training.evaluate_every_steps > 0,
                "training.checkpointEverySteps and training.evaluateEverySteps must be above 0",
            ),
            (
                (0.0..1.0).contains(&training.beta2),
                "training.beta2 must be at least 0 and below 1",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, message)) => Err(Failure::bad_config(format!("recipe: {message}"))),
            None => Ok(recipe),
        }
    }

    /// The model's configuration for a tokenizer of `vocabulary` tokens, whose first two are
    /// begin and end of sequence.
    pub fn config(&self, vocabulary: usize) -> LlamaConfig {
        let shape = &self.model;
        LlamaConfig {
            family: Family::Llama,
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            num_hidden_layers: shape.layers,
            num_attention_heads: shape.attention_heads,
            num_key_value_heads: shape.key_value_heads,
            head_dim: shape.hidden_size / shape.attention_heads,
            vocab_size: vocabulary,
            max_position_embeddings: shape.context,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            local_rope_theta: None,
            query_pre_attn_scalar: None,
            sliding_window: None,
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: shape.tie_word_embeddings,
            bos_token_id: Some(0),
            eos_token_ids: vec![1],
        }
    }
}
