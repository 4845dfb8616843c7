//! The base model's card (README.md).

use super::recipe::Recipe;

/// What the model is, how it was made and what it is not.
pub fn base_model_card(recipe: &Recipe, parameters: usize, perplexity: Option<f64>) -> String {
    let (model, training) = (&recipe.model, &recipe.training);
    let measured = perplexity.map_or_else(String::new, |value| {
        format!("Perplexity per token on held-out rows: {value:.1}.\n\n")
    });
    format!(
        "---\nlicense: {license}\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n\
         # {name}\n\n{description}\n\n\
         {parameters} parameters: a Llama of {layers} layers, hidden size {hidden}, feed-forward size \
         {intermediate}, {heads} query and {key_value} key/value heads, a context of {context} tokens \
         and a byte-level BPE vocabulary of {vocabulary} tokens. Trained from random weights on \
         {tokens} tokens with AdamW (peak learning rate {rate}, {batch} tokens a step, seed {seed}). \
         Weights are stored in bf16.\n\n{measured}\
         It is far too small to be of use for anything but trying things out: it writes text that \
         looks like its source and knows nothing.\n",
        license = recipe.license,
        name = recipe.name,
        description = recipe.description,
        layers = model.layers,
        hidden = model.hidden_size,
        intermediate = model.intermediate_size,
        heads = model.attention_heads,
        key_value = model.key_value_heads,
        context = model.context,
        vocabulary = model.vocabulary,
        tokens = training.tokens,
        rate = training.learning_rate,
        batch = training.batch_tokens,
        seed = training.seed,
    )
}
