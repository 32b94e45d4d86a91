// Lossless coding of whole numbers, many channels side by side: what linear predictors that learn as they go expect, a
// distribution around it that learns too, and an arithmetic coder. genmote/signals/adaptive.py is its twin in Python and tells
// how it works. Encoder and decoder do the same arithmetic: + - * / and square roots of doubles in one fixed order, no library
// function, no fused product, so that every machine reads what another wrote.
#pragma once
#include <cstdint>
#include <vector>

namespace genmote {

constexpr int kMostChannels = 64;
constexpr int64_t kMostSample = int64_t(1) << 48;  // samples lie below it, and above minus it

std::vector<uint8_t> encode_samples(const int64_t* samples, int64_t rows, int channels);  // samples (rows, channels)
void decode_samples(const uint8_t* bytes, int64_t count, int64_t* samples, int64_t rows, int channels);

}  // namespace genmote
