// The Python module aos.engine._native. Everything that computes releases the GIL; errors are (code, message).
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <mutex>
#include <set>

#include "batch.h"
#include "error.h"
#include "leaf.h"
#include "model.h"
#include "self_test.h"
#include "weights.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Release = nb::call_guard<nb::gil_scoped_release>;

PyObject* error_type = nullptr;

const aos::Kernels& tested(const std::string& isa) {
  static std::mutex mutex;
  static std::set<std::string> good;
  const aos::Kernels& kernels = aos::instruction_set(isa);
  const std::lock_guard<std::mutex> lock(mutex);
  if (!good.contains(isa)) {
    aos::self_test(kernels);
    good.insert(isa);
  }
  return kernels;
}

std::shared_ptr<aos::Model> make_model(const std::string& isa, size_t threads, size_t alone_below, const Table& cos, const Table& sin, size_t n_ctx,
                                       size_t n_layers, size_t n_vocab, size_t width, size_t ff_width, size_t n_heads,
                                       size_t n_kv_heads, size_t head_width, size_t n_rot, float eps, bool rope_neighbours) {
  const aos::Sizes sizes{n_ctx, n_layers, n_vocab, width, ff_width, n_heads, n_kv_heads, head_width, n_rot, eps, rope_neighbours};
  for (const Table* table : {&cos, &sin})
    if (table->shape(0) != n_ctx || table->shape(1) != n_rot / 2)
      throw aos::Error("engine.parameter", "the rotary table has another shape than [n_ctx, n_rot / 2]");
  return std::make_shared<aos::Model>(sizes, tested(isa), threads, alone_below, cos.data(), sin.data());
}

nb::bytes joined(const std::vector<aos::Digest>& digests) {
  return nb::bytes(reinterpret_cast<const char*>(digests.data()), 32 * digests.size());
}

template <class T>
nb::ndarray<nb::numpy, T> array(std::vector<T> values, std::initializer_list<size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T>(kept->data(), shape, owner);
}

// Rule 2 for activations [positions, columns]: what the forward pass does, for tests.
nb::ndarray<nb::numpy, float> product(const std::string& isa, uint32_t type, size_t rows, const Bytes& file, const Table& x) {
  const aos::FloatState state;
  const aos::Kernels& kernels = aos::instruction_set(isa);
  aos::Pool pool(1);
  const size_t positions = x.shape(0), columns = x.shape(1);
  const aos::Matrix matrix(pool, type, rows, columns, file.data(), file.size());
  if (positions == 0) throw aos::Error("engine.matrix", "no positions");
  aos::Tiles tiles;
  tiles.begin(positions, columns, !matrix.dense(), matrix.dense());
  for (size_t p = 0; p < positions; ++p) tiles.put(kernels, p, x.data() + p * columns);
  std::vector<float> padded(aos::Tiles::padded(positions) * matrix.padded_rows()), y(positions * rows);
  tiles.multiply(pool, kernels, {{&matrix, padded.data()}});
  for (size_t p = 0; p < positions; ++p)
    std::copy_n(padded.data() + p * matrix.padded_rows(), rows, y.data() + p * rows);
  return array(std::move(y), {positions, rows});
}

// Rule 8: every row of a matrix, dequantised, for tests.
nb::ndarray<nb::numpy, float> dequantise(uint32_t type, size_t rows, size_t columns, const Bytes& file) {
  const aos::FloatState state;
  aos::Pool pool(1);
  const aos::Matrix matrix(pool, type, rows, columns, file.data(), file.size());
  std::vector<float> y(rows * columns);
  for (size_t row = 0; row < rows; ++row) matrix.row(row, y.data() + row * columns);
  return array(std::move(y), {rows, columns});
}

// Rule 9 by itself, for tests: (token or -1, record).
nb::tuple choose(const std::string& isa, const Floats& logits, const std::vector<uint32_t>& seen, uint32_t step,
                 const aos::SamplingRules& rules) {
  const aos::FloatState state;
  aos::Sampler sampler(aos::instruction_set(isa), logits.size(), rules);
  for (const uint32_t token : seen) {
    if (token >= logits.size()) throw aos::Error("engine.token", "a token is not in the vocabulary");
    sampler.see(token);
  }
  std::vector<uint8_t> record;
  const int64_t token = sampler.choose(logits.data(), step, record);
  return nb::make_tuple(token, nb::bytes(reinterpret_cast<const char*>(record.data()), record.size()));
}

// Digests of the messages of `size` bytes that `data` holds one behind the other, for tests. An empty name leaves the way to
// the engine.
nb::bytes sha256_many(const std::string& name, const nb::bytes& prefix, const nb::bytes& data, size_t size) {
  if (size == 0 || data.size() % size != 0) throw aos::Error("engine.parameter", "the data are not whole messages");
  std::vector<aos::Digest> digests(data.size() / size);
  std::vector<const uint8_t*> messages;
  std::vector<aos::Digest*> out;
  for (size_t i = 0; i < digests.size(); ++i) {
    messages.push_back(static_cast<const uint8_t*>(data.data()) + i * size);
    out.push_back(&digests[i]);
  }
  if (name.empty()) {
    aos::sha256_many(prefix.data(), prefix.size(), messages.data(), size, messages.size(), out.data());
    return joined(digests);
  }
  for (const aos::Sha256Lanes& way : aos::sha256_lanes()) {
    if (name != way.name) continue;
    aos::sha256_many(way, prefix.data(), prefix.size(), messages.data(), size, messages.size(), out.data());
    return joined(digests);
  }
  throw aos::Error("engine.isa", "this processor has no way '" + name + "' to hash");
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native engine: aos.engine.native is its Python side.";
  error_type = PyErr_NewException("aos.engine._native.Error", nullptr, nullptr);
  m.attr("Error") = nb::borrow(error_type);
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const aos::Error& error) {
      const nb::tuple value = nb::make_tuple(error.code(), error.what());
      PyErr_SetObject(error_type, value.ptr());
    }
  });

  m.attr("ALONE_BELOW") = aos::Pool::kAloneBelow;
  m.attr("STEP") = aos::Batch::kStep;
  m.attr("MOST") = aos::Batch::kMost;
  m.attr("PAGE") = aos::kPage;
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const aos::Kernels* kernels : aos::instruction_sets()) names.emplace_back(kernels->name);
    return names;
  });
  m.def("self_test", [](const std::string& isa) { tested(isa); }, "isa"_a);
  m.def("self_digest", [](const std::string& isa) {
    const aos::Digest digest = aos::self_digest(aos::instruction_set(isa));
    return nb::bytes(reinterpret_cast<const char*>(digest.data()), digest.size());
  }, "isa"_a);
  m.def("product", product, "isa"_a, "type"_a, "rows"_a, "file"_a, "x"_a);
  m.def("dequantise", dequantise, "type"_a, "rows"_a, "columns"_a, "file"_a);
  m.def("choose", choose, "isa"_a, "logits"_a, "seen"_a, "step"_a, "rules"_a);
  m.def("hash_rows", [](uint32_t type, const Bytes& data, size_t row_bytes, size_t chunk_bytes, const nb::bytes& prefix, size_t threads) {
    const std::string tag(static_cast<const char*>(prefix.data()), prefix.size());
    aos::RowHashes hashes;
    {
      const nb::gil_scoped_release release;
      aos::Pool pool(threads);
      hashes = aos::hash_rows(pool, type, data.data(), data.size(), row_bytes, chunk_bytes, tag);
    }
    return nb::make_tuple(joined(hashes.rows), joined({hashes.root}), hashes.finite);
  }, "type"_a, "data"_a, "row_bytes"_a, "chunk_bytes"_a, "prefix"_a, "threads"_a);
  m.def("sha256_lanes", [] {
    std::vector<std::string> names;
    for (const aos::Sha256Lanes& way : aos::sha256_lanes()) names.emplace_back(way.name);
    return names;
  });
  m.def("sha256_many", sha256_many, "way"_a, "prefix"_a, "data"_a, "size"_a);
  m.def("root", [](const nb::bytes& header, const nb::bytes& leaves, size_t units) {
    if (leaves.size() % 32 != 0 || units == 0) throw aos::Error("engine.leaves", "the leaves are not whole digests of units");
    const auto* h = static_cast<const uint8_t*>(header.data());
    std::vector<aos::Digest> digests(leaves.size() / 32);
    if (!digests.empty()) std::memcpy(digests.data(), leaves.data(), leaves.size());
    const std::vector<uint8_t> entry(h, h + header.size());
    aos::Digest root;
    {
      const nb::gil_scoped_release release;
      root = aos::state_root(entry, digests, units);
    }
    return nb::bytes(reinterpret_cast<const char*>(root.data()), root.size());
  }, "header"_a, "leaves"_a, "units"_a);

  nb::class_<aos::SamplingRules>(m, "SamplingRules")
      .def("__init__", [](aos::SamplingRules* self, float temperature, uint32_t top_k, bool limit_top_p, float top_p, float min_p,
                          bool penalise, float penalty, uint64_t seed) {
        new (self) aos::SamplingRules{temperature, top_k, limit_top_p, top_p, min_p, penalise, penalty, seed};
      }, nb::kw_only(), "temperature"_a, "top_k"_a, "limit_top_p"_a, "top_p"_a, "min_p"_a, "penalise"_a, "penalty"_a, "seed"_a);

  nb::class_<aos::Model>(m, "Model")
      .def(nb::new_(&make_model), nb::kw_only(), "isa"_a, "threads"_a, "alone_below"_a, "cos"_a, "sin"_a, "n_ctx"_a, "n_layers"_a, "n_vocab"_a,
           "width"_a, "ff_width"_a, "n_heads"_a, "n_kv_heads"_a, "head_width"_a, "n_rot"_a, "eps"_a, "rope_neighbours"_a)
      .def("set_matrix", [](aos::Model& model, size_t layer, const std::string& name, uint32_t type, size_t rows, size_t columns,
                            const Bytes& file) {
        const uint8_t* data = file.data();
        const size_t size = file.size();
        const nb::gil_scoped_release release;
        model.set_matrix(layer, name, type, rows, columns, data, size);
      }, "layer"_a, "name"_a, "type"_a, "rows"_a, "columns"_a, "file"_a)
      .def("set_vector", [](aos::Model& model, size_t layer, const std::string& name, const Floats& values) {
        model.set_vector(layer, name, values.data(), values.size());
      }, "layer"_a, "name"_a, "values"_a)
      .def("seal", &aos::Model::seal)
      .def("limit_threads", [](aos::Model& model, size_t threads) { model.pool.limit(threads); }, "threads"_a, Release())
      .def_prop_ro("packed_bytes", &aos::Model::packed_bytes)
      .def_prop_ro("page_bytes", [](const aos::Model& model) { return model.pages->page_bytes(); })
      .def_prop_ro("pages_in_use", [](const aos::Model& model) { return model.pages->in_use(); })
      .def("limit_pages", [](aos::Model& model, size_t most) { model.pages->limit(most); }, "most"_a)
      .def_prop_ro("isa", [](const aos::Model& model) { return model.kernels.name; });

  nb::class_<aos::Page>(m, "Page");

  nb::class_<aos::Batch>(m, "Batch")
      .def(nb::new_([](std::shared_ptr<aos::Model> model) { return std::make_shared<aos::Batch>(std::move(model)); }), "model"_a)
      .def("extend", [](aos::Batch& batch, const std::vector<std::pair<std::shared_ptr<aos::Run>, std::vector<uint32_t>>>& parts) {
        std::vector<aos::Batch::Part> given;
        for (const auto& [run, tokens] : parts) given.push_back({run, tokens});
        batch.extend(given);
      }, "parts"_a, Release())
      .def("choose", &aos::Batch::choose, "runs"_a, Release())
      .def("settle_leaves", &aos::Batch::settle_leaves, Release())
      .def_prop_ro("commitment_ns", &aos::Batch::commitment_ns);

  nb::class_<aos::Run>(m, "Run")
      .def(nb::new_([](std::shared_ptr<aos::Batch> batch, const std::vector<uint32_t>& prompt, const aos::SamplingRules& rules) {
        return std::make_shared<aos::Run>(std::move(batch), prompt, rules);
      }), "batch"_a, "prompt"_a, "rules"_a)
      .def("adopt", &aos::Run::adopt, "pages"_a, "positions"_a, Release())
      .def("page", &aos::Run::page, "index"_a)
      .def("watch", &aos::Run::watch, "units"_a)
      .def("watched", [](const aos::Run& run, size_t unit) {
        const std::vector<float>& kept = run.watched(unit);
        return nb::bytes(reinterpret_cast<const char*>(kept.data()), 4 * kept.size());
      }, "unit"_a)
      .def("cache", [](const aos::Run& run, size_t layer, size_t first, size_t end) {
        const size_t values = (end > first ? end - first : 0) * run.kv_width();
        std::vector<uint16_t> keys(values), vals(values);
        run.copy_cache(layer, first, end, keys.data(), vals.data());
        const auto joined_halves = [](const std::vector<uint16_t>& v) { return nb::bytes(reinterpret_cast<const char*>(v.data()), 2 * v.size()); };
        return nb::make_tuple(joined_halves(keys), joined_halves(vals));
      }, "layer"_a, "first"_a, "end"_a)
      .def("reserve", &aos::Run::reserve, "positions"_a, Release())
      .def_prop_ro("length", &aos::Run::length)
      .def_prop_ro("waiting", &aos::Run::waiting)
      .def_prop_ro("trap", [](const aos::Run& run) -> nb::object {
        if (!run.trap()) return nb::none();
        return nb::make_tuple(run.trap()->position, run.trap()->unit, aos::number(run.trap()->op));
      })
      .def("leaves", [](aos::Run& run, size_t positions) {
        std::vector<aos::Digest> leaves;
        {
          const nb::gil_scoped_release release;
          leaves = run.leaves(positions);
        }
        return joined(leaves);
      }, "positions"_a)
      .def("leaves_to_trap", [](aos::Run& run) {
        std::vector<aos::Digest> leaves;
        {
          const nb::gil_scoped_release release;
          leaves = run.leaves_to_trap();
        }
        return joined(leaves);
      });
}
