"""Every key that a config has, with the values that the paper or the field would expect.

The other files here change what is theirs. None in a model section means: as in the paper.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def common() -> ConfigDict:
    """The sections that every family has."""
    config = ConfigDict()
    config.name = "default"
    config.seed = 1

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.schedule = "inverse_square_root"
    config.optimizer.peak_learning_rate = 7e-4
    config.optimizer.warmup_steps = 4000
    config.optimizer.decay_fraction = 0.2
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.epsilon = 1e-9
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0

    config.training = ConfigDict()
    config.training.total_steps = 100_000
    config.training.accumulation = 1
    config.training.ema_decay = 0.0
    config.training.log_every_steps = 50

    config.guard = ConfigDict()
    config.guard.explosion_factor = 50.0  # times the running mean of the gradient norm; 0: only what is not finite
    config.guard.rollback_after = 5
    config.guard.max_rollbacks = 3
    config.guard.replay_every_steps = 0

    config.initialize = ConfigDict()
    config.initialize.run = ""  # a run directory whose parameters this one starts from
    config.initialize.checkpoint = "best"
    config.initialize.parameters = ("*",)  # patterns of paths: ("encoder/*",)
    config.initialize.tokenizer = True  # take that run's tokenizers too

    config.checkpoints = ConfigDict()
    config.checkpoints.every_steps = 1000  # and at every evaluation
    config.checkpoints.keep_latest = 8
    config.checkpoints.keep_best = 1

    config.evaluation = ConfigDict()
    config.evaluation.every_steps = 1000
    config.evaluation.weights = "latest"
    config.evaluation.average = 8
    config.evaluation.metric = "loss"
    config.evaluation.patience = 0

    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.tracking = ConfigDict()  # besides TensorBoard; each needs the extra of its name
    config.tracking.wandb = ""  # project of Weights & Biases; empty: off
    config.tracking.mlflow = ""  # experiment of MLflow; empty: off
    return config


def blocks() -> ConfigDict:
    """The layers of a Transformer, as in the paper's base model. A family adds how many there are of each kind."""
    model = ConfigDict()
    model.d_model = 512
    model.d_ff = 2048
    model.num_heads = 8
    model.num_kv_heads = placeholder(int)
    model.max_length = 256
    model.norm_placement = "post"
    model.norm = "layer_norm"
    model.norm_epsilon = 1e-6
    model.positions = "sinusoidal"
    model.activation = "relu"
    model.attention_bias = False
    model.attention_implementation = "plain"  # or jax.nn's: "xla"; "cudnn" on NVIDIA GPUs in bfloat16
    model.feed_forward_bias = True
    model.dropout_rate = 0.1
    model.embedding_dropout_rate = 0.1
    model.attention_dropout_rate = 0.0
    model.activation_dropout_rate = 0.0
    model.dtype = "float32"
    model.remat = "none"
    model.scan_layers = False
    return model


def recurrent() -> ConfigDict:
    """The model section of LSTMs in the place of the Transformer: ``config.model = default.recurrent()``."""
    model = ConfigDict()
    model.architecture = "lstm"
    model.d_model = 512
    model.num_layers = 2
    model.attention = "luong"  # or "bahdanau"; "none": the decoder has the encoder's last states alone
    model.max_length = 256
    model.dropout_rate = 0.2
    model.embedding_dropout_rate = 0.2
    model.recurrent_dropout_rate = 0.0
    model.tie_embeddings = "all"
    model.output_bias = False
    model.dtype = "float32"
    return model


def encoder() -> ConfigDict:
    """The layers of BERT (Devlin et al. 2019). A config adds how many there are."""
    model = blocks()
    model.norm_epsilon = 1e-12
    model.positions = "learned"
    model.activation = "gelu_exact"
    model.attention_bias = True
    model.attention_dropout_rate = 0.1
    model.num_types = 2
    model.embedding_norm = True
    model.scale_embeddings = False
    model.pooler = False
    model.initializer = "bert"
    return model


def text() -> ConfigDict:
    """Text without translations: what the installed Python carries, unless a file says otherwise."""
    dataset = ConfigDict()
    dataset.name = "python_text"
    dataset.path = ""
    dataset.train = ""
    dataset.validation = ""
    dataset.test = ""
    dataset.feature = "text"
    dataset.documents = "whole"
    return dataset


def get_config() -> ConfigDict:
    """Transformer-base of Vaswani et al. 2017 on whatever translation dataset a file names."""
    config = common()
    config.family = "translation"

    config.dataset = ConfigDict()
    config.dataset.name = ""
    config.dataset.source_language = "en"
    config.dataset.target_language = "de"
    config.dataset.path = ""  # a local folder; empty: downloaded or generated
    config.dataset.train = ""  # parallel_text only: "a.en,a.de" or "pairs.tsv"
    config.dataset.validation = ""
    config.dataset.test = ""
    config.dataset.max_length_ratio = 9.0
    config.dataset.max_characters = 2000
    config.dataset.bidirectional = False  # training pairs the other way round too, for a run that another starts from
    config.dataset.distilled = ""  # a teacher's translations of the training sources, to learn from as well
    config.dataset.back_translated = ""  # and translations of the training targets, with these as sources

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 10000
    config.tokenizer.joint = True
    config.tokenizer.character_coverage = 1.0
    config.tokenizer.sampling = 0.0  # BPE-dropout rate, or alpha of unigram sampling

    config.batching = ConfigDict()
    config.batching.tokens_per_batch = 4096
    config.batching.num_shapes = 6
    config.batching.max_length = 128
    config.batching.overlong = "drop"
    config.batching.rows_multiple = 8
    config.batching.packed_length = 0  # pairs up to this length share rows

    config.model = blocks()
    config.model.architecture = "transformer"  # "lstm": see recurrent()
    config.model.num_encoder_layers = 6
    config.model.num_decoder_layers = 6
    config.model.tie_embeddings = "all"
    config.model.output_bias = False

    config.task = ConfigDict()
    config.task.label_smoothing = 0.1
    config.task.regularizer = "none"  # or "r_drop", "simcut", with a weight (5 and 3 in their papers)
    config.task.regularizer_weight = 0.0
    config.task.cutoff_rate = 0.05
    config.task.loss_chunk = 256

    config.evaluation.decode = "greedy"
    config.evaluation.max_sentences = 1000
    config.evaluation.metric = "bleu"

    config.decoding = ConfigDict()
    config.decoding.method = "beam"
    config.decoding.beam_size = 4
    config.decoding.n_best = 1
    config.decoding.length_penalty = 0.6
    config.decoding.coverage_penalty = 0.0
    config.decoding.patience = 1.0
    config.decoding.min_length = 1
    config.decoding.max_length_factor = 1.0
    config.decoding.max_length_offset = 50
    config.decoding.max_target_length = 128
    config.decoding.max_source_length = 128
    config.decoding.long_lines = "split"
    config.decoding.batch_size = 128
    config.decoding.seed = 0
    config.decoding.sampling = ConfigDict()
    config.decoding.sampling.temperature = 1.0
    config.decoding.sampling.top_k = 0
    config.decoding.sampling.top_p = 1.0
    config.decoding.sampling.min_p = 0.0
    config.decoding.rerank = "none"  # minimum Bayes risk, among the candidates: "chrf" or "bleu"
    config.decoding.candidates = 1

    return config
