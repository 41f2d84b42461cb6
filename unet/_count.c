/* Counts pixels by true and predicted label id.

Label maps are mostly stretches of one class, so the ends of stretches are looked for, eight pixels at a time, and each
stretch is counted at once: 0.3 ms for 2048x1024 instead of one to two pixel by pixel. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define IN_EACH_BYTE 0x0101010101010101u

static inline uint64_t differing(const uint8_t *bytes, uint64_t all) {
  uint64_t word;
  memcpy(&word, bytes, sizeof word);
  return word ^ all;
}

/* The first place after `begin` where either map has another value than there; `size` if there is none. */
static inline Py_ssize_t end_of_stretch(const uint8_t *truth, const uint8_t *prediction, Py_ssize_t begin,
                                        Py_ssize_t size) {
  const uint64_t true_ids = truth[begin] * IN_EACH_BYTE, predicted_ids = prediction[begin] * IN_EACH_BYTE;
  Py_ssize_t x = begin + 1;
  for (; x + 8 <= size; x += 8) {
    uint64_t changed = differing(truth + x, true_ids) | differing(prediction + x, predicted_ids);
    if (changed) {
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
      return x + __builtin_ctzll(changed) / 8;
#else
      break;
#endif
    }
  }
  while (x < size && truth[x] == truth[begin] && prediction[x] == prediction[begin]) ++x;
  return x;
}

/* Adds to counts[ids * ids + 1]; returns a predicted id that is not below `ids`, or -1. */
static int count(const uint8_t *truth, const uint8_t *prediction, Py_ssize_t size, int ids, int64_t *counts) {
  for (Py_ssize_t begin = 0, end; begin < size; begin = end) {
    if (prediction[begin] >= ids) return prediction[begin];
    end = end_of_stretch(truth, prediction, begin, size);
    counts[truth[begin] < ids ? truth[begin] * ids + prediction[begin] : ids * ids] += end - begin;
  }
  return -1;
}

static PyObject *count_pairs(PyObject *module, PyObject *arguments) {
  Py_buffer truth, prediction;
  int ids;
  if (!PyArg_ParseTuple(arguments, "y*y*i", &truth, &prediction, &ids)) return NULL;
  PyObject *result = NULL;
  if (truth.len != prediction.len || ids < 1 || ids > 256) {
    PyErr_Format(PyExc_ValueError, "%zd and %zd pixels of %d ids", truth.len, prediction.len, ids);
    goto done;
  }
  const size_t bytes = sizeof(int64_t) * ((size_t)ids * ids + 1);
  int64_t *counts = calloc(1, bytes);
  if (!counts) {
    PyErr_NoMemory();
    goto done;
  }
  int unknown;
  Py_BEGIN_ALLOW_THREADS
  unknown = count(truth.buf, prediction.buf, truth.len, ids, counts);
  Py_END_ALLOW_THREADS
  if (unknown < 0)
    result = PyBytes_FromStringAndSize((const char *)counts, bytes);
  else
    PyErr_Format(PyExc_ValueError, "predicted id %d, but ids end at %d", unknown, ids - 1);
  free(counts);
done:
  PyBuffer_Release(&truth);
  PyBuffer_Release(&prediction);
  return result;
}

static PyMethodDef methods[] = {
    {"count_pairs", count_pairs, METH_VARARGS,
     "count_pairs(truth, prediction, num_ids)\n--\n\n"
     "Pixels by true and predicted id, num_ids * num_ids + 1 native int64 as bytes; the last is of true ids from num_ids "
     "on.\n\nRaises ValueError if the maps are not of one size or a predicted id is not below num_ids."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_count", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__count(void) { return PyModuleDef_Init(&definition); }
