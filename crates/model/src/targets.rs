//! Which modules an adapter changes, and how large each update is, by PEFT's rules
//! (`check_target_module_exists` and `get_pattern_key` of peft 0.21).
//!
//! Names and regular expressions are held against every module's path in transformers' models,
//! `model.layers.3.self_attn.q_proj`. Where they hit anything but a linear layer of a transformer
//! layer (the output projection, the embedding, a norm), the adapter is refused by that name.

use std::collections::{BTreeMap, BTreeSet};

use fancy_regex::Regex;

use crate::config::LlamaConfig;
use crate::kernel::{self, HalfFormat};
use crate::lora::{LoraConfig, Module};
use crate::peft::AdapterError;

/// Names or ends of paths (`q_proj`, `self_attn.q_proj`), or one regular expression that whole paths
/// match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Any of these.
    List(Vec<String>),
    /// What Python's `re.fullmatch` accepts.
    Pattern(String),
}

/// What `target_modules` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Modules by name.
    Named(Names),
    /// `all-linear`: every linear layer but the output projection.
    AllLinear,
}

/// Which modules are adapted, and where rank and alpha differ from the adapter's.
#[derive(Debug, Clone, PartialEq)]
pub struct Targets {
    /// `target_modules`
    pub modules: TargetModules,
    /// `exclude_modules`
    pub exclude: Option<Names>,
    /// `layers_to_transform`; none: all. A module that is listed by its whole path is adapted in
    /// any case.
    pub layers: Option<BTreeSet<usize>>,
    /// `layers_pattern`: what stands before the layer's number, as regular expressions; none:
    /// anything.
    pub layers_pattern: Vec<String>,
    /// `rank_pattern`: the first whose expression matches the end of the path decides.
    pub rank_pattern: Vec<(String, usize)>,
    /// `alpha_pattern`, as `rank_pattern`.
    pub alpha_pattern: Vec<(String, f64)>,
}

impl Targets {
    /// These modules in every layer.
    pub fn of(modules: &[Module]) -> Self {
        let names = Module::ALL
            .into_iter()
            .filter(|module| modules.contains(module))
            .map(|module| module.name().to_owned());
        Self {
            modules: TargetModules::Named(Names::List(names.collect())),
            exclude: None,
            layers: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }
}

/// One module's update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Its inner dimension.
    pub rank: usize,
    /// What it is multiplied with.
    pub scaling: f32,
}

/// The updates of a whole model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoraPlan {
    layers: Vec<[Option<Update>; Module::ALL.len()]>,
}

impl LoraPlan {
    /// Finds the modules of a model that an adapter changes.
    ///
    /// # Errors
    /// An expression that can't be used, a rank or alpha out of range, a target that is no linear
    /// layer, or no target at all.
    pub fn new(lora: &LoraConfig, config: &LlamaConfig) -> Result<Self, AdapterError> {
        let matcher = Matcher::new(&lora.targets)?;
        for (layer, path) in other_modules(config) {
            if matcher.is_target(layer, &path)? {
                return Err(AdapterError::UnknownModule(path));
            }
        }
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let mut updates = [None; Module::ALL.len()];
            for (update, module) in updates.iter_mut().zip(Module::ALL) {
                let path = format!("model.layers.{layer}.{}", module.path());
                if matcher.is_linear_target(layer, &path)? {
                    let rank = matcher.rank(&path)?.unwrap_or(lora.rank);
                    let alpha = matcher.alpha(&path)?.unwrap_or(lora.alpha);
                    lora.check_size(rank, alpha, config)?;
                    let scaling = lora.scaling(rank, alpha);
                    *update = Some(Update { rank, scaling });
                }
            }
            layers.push(updates);
        }
        if layers.iter().flatten().any(Option::is_some) {
            return Ok(Self { layers });
        }
        let named = match &lora.targets.modules {
            TargetModules::AllLinear => "all-linear",
            TargetModules::Named(Names::Pattern(pattern)) => pattern.as_str(),
            TargetModules::Named(Names::List(names)) => names.first().map_or("", String::as_str),
        };
        Err(AdapterError::UnknownModule(named.to_owned()))
    }

    /// The update of a module, if it has one.
    pub fn update(&self, layer: usize, module: Module) -> Option<Update> {
        *self.layers.get(layer)?.get(module as usize)?
    }

    /// Bytes that such an adapter takes once it is packed, [`LoadedAdapter::bytes`], at most: `format` says in which
    /// halves a tensor is stored, if in any. What is stored as f32 takes half where bf16 or f16 has its values.
    ///
    /// [`LoadedAdapter::bytes`]: crate::lora::LoadedAdapter::bytes
    pub(crate) fn packed_bytes(
        &self,
        config: &LlamaConfig,
        format: &dyn Fn(&str) -> Option<HalfFormat>,
    ) -> usize {
        let mut bytes = 0;
        for layer in 0..self.layers.len() {
            for group in Module::GROUPS {
                let mut stack = 0;
                let mut formats = Vec::with_capacity(group.len());
                for module in group {
                    let Some(Update { rank, .. }) = self.update(layer, *module) else {
                        continue;
                    };
                    let (outputs, inputs) = module.shape(config);
                    stack += kernel::packed_bytes(rank, inputs);
                    formats.push(format(&module.lora_name(layer, "lora_A")));
                    let b = format(&module.lora_name(layer, "lora_B"));
                    bytes += kernel::packed_bytes(outputs, rank) / if b.is_some() { 2 } else { 1 };
                }
                // The factors of a stack are held in one format.
                let is_half = formats.first().is_some_and(|first| {
                    first.is_some() && formats.iter().all(|format| format == first)
                });
                bytes += stack / if is_half { 2 } else { 1 };
            }
        }
        bytes
    }

    /// Every tensor of such an adapter with its shape.
    pub fn tensor_shapes(&self, config: &LlamaConfig) -> BTreeMap<String, [usize; 2]> {
        let mut shapes = BTreeMap::new();
        for layer in 0..self.layers.len() {
            for module in Module::ALL {
                if let Some(Update { rank, .. }) = self.update(layer, module) {
                    let (outputs, inputs) = module.shape(config);
                    shapes.insert(module.lora_name(layer, "lora_A"), [rank, inputs]);
                    shapes.insert(module.lora_name(layer, "lora_B"), [outputs, rank]);
                }
            }
        }
        shapes
    }
}

/// The layer and path of every module that can't carry an update.
fn other_modules(config: &LlamaConfig) -> Vec<(Option<usize>, String)> {
    const OUTSIDE: [&str; 6] = [
        "lm_head",
        "model",
        "model.embed_tokens",
        "model.layers",
        "model.norm",
        "model.rotary_emb",
    ];
    const INSIDE: [&str; 6] = [
        "",
        ".input_layernorm",
        ".mlp",
        ".mlp.act_fn",
        ".post_attention_layernorm",
        ".self_attn",
    ];
    const HEAD_NORMS: [&str; 2] = [".self_attn.k_norm", ".self_attn.q_norm"];
    const FEED_FORWARD_NORMS: [&str; 2] =
        [".post_feedforward_layernorm", ".pre_feedforward_layernorm"];
    let outside = OUTSIDE.map(|path| (None, path.to_owned()));
    let head_norms = HEAD_NORMS.iter().filter(|_| config.has_query_key_norm());
    let more_norms = FEED_FORWARD_NORMS
        .iter()
        .filter(|_| config.has_output_norms());
    let paths = INSIDE.iter().chain(head_norms).chain(more_norms);
    let paths: Vec<&str> = paths.copied().collect();
    let inside = (0..config.num_hidden_layers).flat_map(|layer| {
        let paths = paths.iter();
        paths.map(move |path| (Some(layer), format!("model.layers.{layer}{path}")))
    });
    outside.into_iter().chain(inside).collect()
}

/// The compiled expressions.
struct Matcher<'a> {
    targets: &'a Targets,
    include: Option<Expression>,
    exclude: Option<Expression>,
    layers: Vec<Expression>,
    ranks: Vec<(Expression, usize)>,
    alphas: Vec<(Expression, f64)>,
}

impl<'a> Matcher<'a> {
    fn new(targets: &'a Targets) -> Result<Self, AdapterError> {
        let whole = |field, names: Option<&Names>| match names {
            Some(Names::Pattern(pattern)) => {
                Expression::new(field, pattern, &format!(r"\A(?:{pattern})\z")).map(Some)
            }
            _ => Ok(None),
        };
        let named = match &targets.modules {
            TargetModules::Named(names) => Some(names),
            TargetModules::AllLinear => None,
        };
        Ok(Self {
            targets,
            include: whole("target_modules", named)?,
            exclude: whole("exclude_modules", targets.exclude.as_ref())?,
            layers: targets
                .layers_pattern
                .iter()
                .map(|pattern| {
                    let source = format!(r"\A(?:(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.)");
                    Expression::new("layers_pattern", pattern, &source)
                })
                .collect::<Result<_, _>>()?,
            ranks: ends("rank_pattern", &targets.rank_pattern)?,
            alphas: ends("alpha_pattern", &targets.alpha_pattern)?,
        })
    }

    /// Whether a linear layer of a transformer layer is adapted.
    fn is_linear_target(&self, layer: usize, path: &str) -> Result<bool, AdapterError> {
        match self.targets.modules {
            TargetModules::AllLinear => Ok(!self.is_excluded(path)?),
            TargetModules::Named(_) => self.is_target(Some(layer), path),
        }
    }

    /// Whether names or expressions hit this path.
    fn is_target(&self, layer: Option<usize>, path: &str) -> Result<bool, AdapterError> {
        if self.is_excluded(path)? {
            return Ok(false);
        }
        if let Some(expression) = &self.include {
            return expression.is_match(path);
        }
        let TargetModules::Named(Names::List(names)) = &self.targets.modules else {
            return Ok(false);
        };
        if names.iter().any(|name| name == path) {
            return Ok(true);
        }
        Ok(ends_with_any(path, names) && self.is_in_layers(layer, path)?)
    }

    fn is_excluded(&self, path: &str) -> Result<bool, AdapterError> {
        match (&self.exclude, &self.targets.exclude) {
            (Some(expression), _) => expression.is_match(path),
            (None, Some(Names::List(names))) => {
                Ok(names.iter().any(|name| name == path) || ends_with_any(path, names))
            }
            _ => Ok(false),
        }
    }

    fn is_in_layers(&self, layer: Option<usize>, path: &str) -> Result<bool, AdapterError> {
        let Some(wanted) = &self.targets.layers else {
            return Ok(true);
        };
        let mut layer = layer;
        for expression in &self.layers {
            layer = expression.layer(path)?;
            if layer.is_some() {
                break;
            }
        }
        Ok(layer.is_some_and(|layer| wanted.contains(&layer)))
    }

    fn rank(&self, path: &str) -> Result<Option<usize>, AdapterError> {
        first(&self.ranks, path)
    }

    fn alpha(&self, path: &str) -> Result<Option<f64>, AdapterError> {
        first(&self.alphas, path)
    }
}

fn ends_with_any(path: &str, names: &[String]) -> bool {
    names.iter().any(|name| {
        path.strip_suffix(name.as_str())
            .is_some_and(|before| before.ends_with('.'))
    })
}

/// Expressions for the end of a path.
fn ends<T: Copy>(
    field: &'static str,
    patterns: &[(String, T)],
) -> Result<Vec<(Expression, T)>, AdapterError> {
    patterns
        .iter()
        .map(|(pattern, value)| {
            let source = format!(r"\A(?:(.*\.)?({pattern})\z)");
            Ok((Expression::new(field, pattern, &source)?, *value))
        })
        .collect()
}

/// The value of the first expression that matches.
fn first<T: Copy>(expressions: &[(Expression, T)], path: &str) -> Result<Option<T>, AdapterError> {
    for (expression, value) in expressions {
        if expression.is_match(path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// A regular expression of an adapter's configuration. They are untrusted: one that does not end
/// within the engine's limit is an error.
struct Expression {
    field: &'static str,
    pattern: String,
    regex: Regex,
}

impl Expression {
    fn new(field: &'static str, pattern: &str, source: &str) -> Result<Self, AdapterError> {
        let regex = Regex::new(source).map_err(|_| AdapterError::Invalid {
            field,
            value: pattern.to_owned(),
            expected: "a regular expression",
        })?;
        Ok(Self {
            field,
            pattern: pattern.to_owned(),
            regex,
        })
    }

    fn endless(&self) -> AdapterError {
        AdapterError::Invalid {
            field: self.field,
            value: self.pattern.clone(),
            expected: "a regular expression that comes to an end",
        }
    }

    fn is_match(&self, path: &str) -> Result<bool, AdapterError> {
        self.regex.is_match(path).map_err(|_| self.endless())
    }

    /// The number that a `layers_pattern` finds.
    fn layer(&self, path: &str) -> Result<Option<usize>, AdapterError> {
        let captures = self.regex.captures(path).map_err(|_| self.endless())?;
        let number = captures.and_then(|found| found.name("idx")?.as_str().parse().ok());
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Family;
    use crate::fixture::TinyShape;

    fn config() -> LlamaConfig {
        TinyShape {
            layers: 3,
            ..TinyShape::default()
        }
        .config()
    }

    fn lora(targets: Targets) -> LoraConfig {
        LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets,
            use_rslora: false,
        }
    }

    fn list(names: &[&str]) -> Names {
        Names::List(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn pattern(pattern: &str) -> Names {
        Names::Pattern(pattern.to_owned())
    }

    fn named(names: Names) -> Targets {
        Targets {
            modules: TargetModules::Named(names),
            ..Targets::of(&[])
        }
    }

    /// `0.q_proj 2.up_proj`: what is adapted, by layer and name.
    fn adapted(targets: Targets) -> String {
        let plan = LoraPlan::new(&lora(targets), &config()).unwrap();
        let all = (0..3).flat_map(|layer| Module::ALL.map(|module| (layer, module)));
        let hit = all.filter(|(layer, module)| plan.update(*layer, *module).is_some());
        let names: Vec<String> = hit
            .map(|(layer, module)| format!("{layer}.{}", module.name()))
            .collect();
        names.join(" ")
    }

    fn refused(targets: Targets) -> String {
        LoraPlan::new(&lora(targets), &config())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn names_and_expressions_find_what_peft_finds() {
        for (names, expected) in [
            (list(&["q_proj"]), "0.q_proj 1.q_proj 2.q_proj"),
            (
                list(&["mlp.up_proj", "c_attn"]),
                "0.up_proj 1.up_proj 2.up_proj",
            ),
            (list(&["1.mlp.up_proj"]), "1.up_proj"),
            (list(&["model.layers.2.self_attn.k_proj"]), "2.k_proj"),
            // `roj` ends the path, but not behind a dot.
            (list(&["roj", "o_proj"]), "0.o_proj 1.o_proj 2.o_proj"),
            (pattern(r".*\.[02]\..*\.v_proj"), "0.v_proj 2.v_proj"),
            (
                pattern(r".*(q_proj|down_proj)"),
                "0.q_proj 0.down_proj 1.q_proj 1.down_proj 2.q_proj 2.down_proj",
            ),
            (
                pattern(r"model\.layers\.\d+\.(?!mlp).*\.(?:k|v)_proj"),
                "0.k_proj 0.v_proj 1.k_proj 1.v_proj 2.k_proj 2.v_proj",
            ),
        ] {
            assert_eq!(adapted(named(names.clone())), expected, "{names:?}");
        }
    }

    #[test]
    fn all_linear_leaves_out_the_output_projection_and_what_is_excluded() {
        let all = Targets {
            modules: TargetModules::AllLinear,
            ..Targets::of(&[])
        };
        assert_eq!(adapted(all.clone()).split(' ').count(), 21);
        for exclude in [
            list(&["mlp.gate_proj", "o_proj"]),
            pattern(r".*\.(gate|o)_proj"),
        ] {
            let without = Targets {
                exclude: Some(exclude),
                ..all.clone()
            };
            let adapted = adapted(without);
            assert_eq!(adapted.split(' ').count(), 15);
            assert!(!adapted.contains("gate_proj") && !adapted.contains("o_proj"));
        }
    }

    #[test]
    fn layers_are_chosen_by_number_and_by_what_stands_before_it() {
        let some = |patterns: &[&str]| Targets {
            layers: Some(BTreeSet::from([0, 2, 9])),
            layers_pattern: patterns
                .iter()
                .map(|pattern| (*pattern).to_owned())
                .collect(),
            ..Targets::of(&[Module::VProj])
        };
        assert_eq!(adapted(some(&[])), "0.v_proj 2.v_proj");
        assert_eq!(adapted(some(&["blocks", "layers"])), "0.v_proj 2.v_proj");
        assert_eq!(adapted(some(&["lay[a-z]+"])), "0.v_proj 2.v_proj");
        assert!(refused(some(&["blocks"])).contains("`v_proj` is unknown"));
        // A module that is listed by its whole path is not asked for its layer.
        let whole = Targets {
            layers: Some(BTreeSet::from([0])),
            ..named(list(&["model.layers.1.self_attn.q_proj", "v_proj"]))
        };
        assert_eq!(adapted(whole), "0.v_proj 1.q_proj");
    }

    #[test]
    fn the_first_pattern_that_ends_the_path_sets_rank_and_alpha() {
        let targets = Targets {
            rank_pattern: vec![
                (r"layers\.1\..*".to_owned(), 2),
                ("q_proj".to_owned(), 16),
                ("proj".to_owned(), 32),
            ],
            alpha_pattern: vec![("self_attn.q_proj".to_owned(), 3.0)],
            ..Targets::of(&[Module::QProj, Module::VProj])
        };
        let plan = LoraPlan::new(&lora(targets.clone()), &config()).unwrap();
        let update = |layer, module| {
            let update: Update = plan.update(layer, module).unwrap();
            (update.rank, update.scaling)
        };
        assert_eq!(update(0, Module::QProj), (16, 3.0 / 16.0));
        assert_eq!(
            update(0, Module::VProj),
            (4, 2.0),
            "`proj` is not a whole name"
        );
        assert_eq!(update(1, Module::QProj), (2, 1.5));
        assert_eq!(update(1, Module::VProj), (2, 4.0));
        let mut rslora = lora(targets);
        rslora.use_rslora = true;
        let plan = LoraPlan::new(&rslora, &config()).unwrap();
        let update = plan.update(0, Module::QProj).unwrap();
        assert_eq!(
            update.scaling,
            3.0 / 4.0,
            "alpha over the root of this rank"
        );
        let shapes = plan.tensor_shapes(&config());
        let shape = shapes[&Module::QProj.lora_name(0, "lora_A")];
        assert_eq!(shape, [16, config().hidden_size]);
    }

    #[test]
    fn what_is_no_linear_layer_is_refused_by_name() {
        for (names, named_in_error) in [
            (list(&["q_proj", "lm_head"]), "lm_head"),
            (list(&["q_proj", "embed_tokens"]), "model.embed_tokens"),
            (pattern(".*"), "lm_head"),
            (pattern(r".*\.1\.self_attn"), "model.layers.1.self_attn"),
            (list(&["c_attn"]), "c_attn"),
            (pattern("c_attn"), "c_attn"),
        ] {
            let text = refused(named(names));
            assert!(
                text.starts_with(&format!("target module `{named_in_error}` is unknown")),
                "{text}"
            );
        }
    }

    /// The same expression is fine where the model has no such norm.
    #[test]
    fn norms_are_asked_only_of_families_that_have_them() {
        let attention = || named(pattern(r".*\.1\.self_attn\..*"));
        assert_eq!(adapted(attention()), "1.q_proj 1.k_proj 1.v_proj 1.o_proj");
        let qwen3 = TinyShape::default().family_config(Family::Qwen3);
        let error = LoraPlan::new(&lora(attention()), &qwen3).unwrap_err();
        assert!(error.to_string().contains("layers.1.self_attn.k_norm"));
        let norms = || named(pattern(r".*\.(?:q_proj|pre_feedforward_layernorm)"));
        assert_eq!(adapted(norms()), "0.q_proj 1.q_proj 2.q_proj");
        let gemma3 = TinyShape::default().family_config(Family::Gemma3);
        let error = LoraPlan::new(&lora(norms()), &gemma3).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("layers.0.pre_feedforward_layernorm")
        );
    }

    #[test]
    fn expressions_that_are_none_and_sizes_out_of_range_are_refused() {
        let text = refused(named(pattern("(q_proj")));
        assert!(text.contains("must be a regular expression"), "{text}");
        let mut wide = named(list(&["q_proj"]));
        wide.rank_pattern = vec![("q_proj".to_owned(), 0)];
        assert!(refused(wide).starts_with("r is 0, must be from 1"));
    }
}
