"""Networks for text, speech, other sequences and tables."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from tests.benchmarks.torch_modules import BUILDERS, First, Made, Residual, Sequence, network

for _name, _layer in (
    ("lstm", lambda: nn.LSTM(64, 256, num_layers=2)),
    ("bilstm", lambda: nn.LSTM(128, 128, bidirectional=True)),
    ("gru", lambda: nn.GRU(80, 256, num_layers=2)),
    ("rnn", lambda: nn.RNN(64, 256)),
):
    BUILDERS[_name] = lambda layer=_layer: (
        Sequence(layer(), 40),
        (torch.randn(100, 1, layer().input_size),),
    )


def _ids(length: int = 128) -> torch.Tensor:
    return torch.randint(0, 1000, (1, length))


def _encoder(config_name: str, model_name: str, **config: Any) -> Made:
    import transformers

    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**config))
    return First(model), (_ids(), torch.ones(1, 128, dtype=torch.int64))


_SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
_SMALL |= {"vocab_size": 1000}
BUILDERS["bert_small"] = lambda: _encoder("BertConfig", "BertModel", **_SMALL)
BUILDERS["roberta"] = lambda: _encoder("RobertaConfig", "RobertaModel", max_position_embeddings=200, **_SMALL)
BUILDERS["mpnet"] = lambda: _encoder("MPNetConfig", "MPNetModel", max_position_embeddings=200, **_SMALL)
BUILDERS["albert"] = lambda: _encoder("AlbertConfig", "AlbertModel", **_SMALL)
BUILDERS["distilbert"] = lambda: _encoder(
    "DistilBertConfig", "DistilBertModel", dim=256, n_layers=4, n_heads=4, hidden_dim=1024, vocab_size=1000
)
BUILDERS["t5_encoder"] = lambda: _encoder(
    "T5Config", "T5EncoderModel", d_model=256, num_layers=4, num_heads=4, d_ff=1024, vocab_size=1000, d_kv=64
)


def _decoder(config_name: str, model_name: str, **config: Any) -> Made:
    import transformers

    settings = getattr(transformers, config_name)(use_cache=False, vocab_size=1000, **config)
    return First(getattr(transformers, model_name)(settings), "logits"), (_ids(64),)


BUILDERS["gpt2"] = lambda: _decoder("GPT2Config", "GPT2LMHeadModel", n_embd=256, n_layer=4, n_head=4)
_LLAMA = {k: v for k, v in _SMALL.items() if k != "vocab_size"} | {"num_key_value_heads": 2}
BUILDERS["llama"] = lambda: _decoder("LlamaConfig", "LlamaForCausalLM", **_LLAMA)
BUILDERS["qwen2"] = lambda: _decoder("Qwen2Config", "Qwen2ForCausalLM", **_LLAMA)


@network("whisper_encoder")
def whisper_encoder() -> Made:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(d_model=128, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=512)
    config.max_source_positions = 250
    return First(WhisperEncoder(config)), (torch.randn(1, 80, 500),)


@network("wav2vec2")
def wav2vec2() -> Made:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512, conv_dim=[128] * 7,
        num_conv_pos_embeddings=32,
    )  # fmt: skip
    return First(Wav2Vec2Model(config)), (torch.randn(1, 16000),)


class ConformerBlock(nn.Module):
    """Attention, a depthwise convolution over time and two feed-forward halves, as in Gulati et al."""

    def __init__(self, width: int = 144, heads: int = 4) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
            for _ in range(2)
        )
        self.heads, self.norm, self.qkv = heads, nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.before = nn.Linear(width, width), nn.LayerNorm(width)
        self.conv = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GLU(1), nn.Conv1d(width, width, 31, padding=15, groups=width),
            nn.BatchNorm1d(width), nn.SiLU(), nn.Conv1d(width, width, 1),
        )  # fmt: skip
        self.last = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.first(x)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.conv(self.before(x).transpose(1, 2)).transpose(1, 2)
        return self.last(x + 0.5 * self.second(x))


@network("conformer")
def conformer() -> Made:
    return nn.Sequential(*(ConformerBlock() for _ in range(4))), (torch.randn(1, 100, 144),)


@network("tcn")
def tcn() -> Made:
    layers: list[nn.Module] = [nn.Conv1d(1, 64, 16, 8)]
    for power in range(6):
        step = 2**power
        block = [nn.Conv1d(64, 128, 1), nn.PReLU(), nn.Conv1d(128, 128, 3, padding=step, dilation=step, groups=128)]
        layers.append(Residual(nn.Sequential(*block, nn.PReLU(), nn.Conv1d(128, 64, 1))))
    return nn.Sequential(*layers, nn.ConvTranspose1d(64, 1, 16, 8)), (torch.randn(1, 1, 8000),)


@network("hifigan")
def hifigan() -> Made:
    layers: list[nn.Module] = [nn.Conv1d(80, 128, 7, padding=3)]
    width = 128
    for stride in (8, 8, 4):
        layers += [nn.LeakyReLU(0.1), nn.ConvTranspose1d(width, width // 2, 2 * stride, stride, stride // 2)]
        width //= 2
        for dilation in (1, 3, 5):
            inner = [nn.LeakyReLU(0.1), nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)]
            layers.append(Residual(nn.Sequential(*inner, nn.LeakyReLU(0.1), nn.Conv1d(width, width, 3, padding=1))))
    return nn.Sequential(*layers, nn.LeakyReLU(), nn.Conv1d(width, 1, 7, padding=3), nn.Tanh()), (
        torch.randn(1, 80, 32),
    )


@network("mlp")
def mlp() -> Made:
    widths = (64, 512, 512, 256, 8)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), (torch.randn(16, 64),)


class DLRM(nn.Module):
    """A recommender: embeddings, a network of dense features, and products of pairs, as in Naumov et al."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(1000, 32) for _ in range(8))
        self.bottom = nn.Sequential(nn.Linear(13, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(32 + 81, 256), nn.ReLU(), nn.Linear(256, 1), nn.Sigmoid())

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        x = self.bottom(dense)
        all_ = torch.stack([x, *(table(sparse[:, i]) for i, table in enumerate(self.tables))], 1)
        return self.top(torch.cat([x, (all_ @ all_.transpose(1, 2)).flatten(1)], 1))


@network("dlrm")
def dlrm() -> Made:
    return DLRM(), (torch.randn(64, 13), torch.randint(0, 1000, (64, 8)))
