/* What each message needs, compiled: frames of ZMTP are split and written, and envelopes are decoded and encoded.
 *
 * All of it exists in Python, too (zmq_offload/net/frames.py, zmq_offload/protocol/messages.py), and does the same. The
 * functions here handle only what is usual. They leave all else, and all errors, to Python, by returning None or by
 * stopping early. They read no memory outside the buffers that they are given, whatever is in these.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* --- ZMTP: rfc.zeromq.org/spec/37 ------------------------------------------------------------------------------ */

enum { MORE = 1, LONG = 2, SHORT_HEAD = 2, LONG_HEAD = 9 };

static uint64_t
read_big_endian(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

static void
write_big_endian(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--) {
        at[i] = (uint8_t)value;
        value >>= 8;
    }
}

PyDoc_STRVAR(split_doc,
"split(view, at, stop, most, room, frames, messages, turn) -> (at, frames)\n\n"
"Does the same as zmq_offload.net.frames._split.");

static PyObject *
split(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 8) {
        return PyErr_Format(PyExc_TypeError, "split takes 8 arguments, not %zd", count);
    }
    Py_ssize_t at = PyLong_AsSsize_t(args[1]), stop = PyLong_AsSsize_t(args[2]);
    Py_ssize_t most = PyLong_AsSsize_t(args[3]), room = PyLong_AsSsize_t(args[4]);
    Py_ssize_t turn = PyLong_AsSsize_t(args[7]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyObject *messages = args[6], *frames = args[5];
    if (!PyList_CheckExact(frames) || !PyList_CheckExact(messages)) {
        PyErr_SetString(PyExc_TypeError, "frames and messages are lists");
        return NULL;
    }
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (at < 0 || stop > buffer.len) {
        PyBuffer_Release(&buffer);
        PyErr_SetString(PyExc_ValueError, "at and stop lie within the view");
        return NULL;
    }
    const uint8_t *data = buffer.buf;
    Py_INCREF(frames);
    while (stop - at >= SHORT_HEAD) {
        const uint8_t flags = data[at];
        if (flags > (LONG | MORE)) {
            break;
        }
        const int head = flags & LONG ? LONG_HEAD : SHORT_HEAD;
        if (stop - at < head) {
            break;
        }
        const uint64_t size = flags & LONG ? read_big_endian(data + at + 1, 8) : data[at + 1];
        if (size > (uint64_t)(stop - at - head) || size > (uint64_t)most || PyList_GET_SIZE(frames) >= room) {
            break;
        }
        PyObject *frame = PyBytes_FromStringAndSize((const char *)data + at + head, (Py_ssize_t)size);
        if (frame == NULL) {
            goto failed;
        }
        const int failed = PyList_Append(frames, frame);
        Py_DECREF(frame);
        if (failed) {
            goto failed;
        }
        at += head + (Py_ssize_t)size;
        if (!(flags & MORE)) {
            if (PyList_Append(messages, frames) < 0) {
                goto failed;
            }
            Py_DECREF(frames);
            frames = PyList_New(0);
            if (frames == NULL) {
                goto failed;
            }
            if (PyList_GET_SIZE(messages) == turn) {
                break;
            }
        }
    }
    PyBuffer_Release(&buffer);
    return Py_BuildValue("nN", at, frames);
failed:
    PyBuffer_Release(&buffer);
    Py_XDECREF(frames);
    return NULL;
}

PyDoc_STRVAR(append_doc,
"append(buffers, frames) -> int\n\n"
"Does the same as zmq_offload.net.frames._append, and joins the buffers of a short message.");

enum { FRAMES_AT_HAND = 8, JOINED_BYTES = 16 * 1024 };

static int
write_head(uint8_t *at, uint64_t size, int more)
{
    if (size < 256) {
        at[0] = (uint8_t)(more ? MORE : 0);
        at[1] = (uint8_t)size;
        return SHORT_HEAD;
    }
    at[0] = (uint8_t)(more ? LONG | MORE : LONG);
    write_big_endian(at + 1, size, 8);
    return LONG_HEAD;
}

static int
append_new(PyObject *buffers, PyObject *bytes)
{
    if (bytes == NULL) {
        return -1;
    }
    const int failed = PyList_Append(buffers, bytes);
    Py_DECREF(bytes);
    return failed;
}

/* Appends a message that is short enough to be copied. */
static int
append_joined(PyObject *buffers, const Py_buffer *frames, Py_ssize_t count, Py_ssize_t total)
{
    PyObject *joined = PyBytes_FromStringAndSize(NULL, total);
    if (joined != NULL) {
        uint8_t *at = (uint8_t *)PyBytes_AS_STRING(joined);
        for (Py_ssize_t i = 0; i < count; i++) {
            at += write_head(at, (uint64_t)frames[i].len, i + 1 < count);
            memcpy(at, frames[i].buf, (size_t)frames[i].len);
            at += frames[i].len;
        }
    }
    return append_new(buffers, joined);
}

/* Appends a message whose frames are not copied. */
static int
append_apart(PyObject *buffers, PyObject *frames, const Py_buffer *held, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        uint8_t head[LONG_HEAD];
        const int size = write_head(head, (uint64_t)held[i].len, i + 1 < count);
        if (append_new(buffers, PyBytes_FromStringAndSize((const char *)head, size)) < 0
            || PyList_Append(buffers, PySequence_Fast_GET_ITEM(frames, i)) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
append(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyList_CheckExact(args[0])) {
        return PyErr_Format(PyExc_TypeError, "append takes a list of buffers, and frames");
    }
    /* A tuple, because the code of a buffer's class could change a list. */
    PyObject *buffers = args[0], *frames = PySequence_Tuple(args[1]);
    if (frames == NULL) {
        return NULL;
    }
    const Py_ssize_t number = PyTuple_GET_SIZE(frames);
    Py_buffer at_hand[FRAMES_AT_HAND], *held = at_hand;
    Py_ssize_t holds = 0;
    uint64_t total = 0;
    int failed = -1;
    if (number > FRAMES_AT_HAND && (held = PyMem_New(Py_buffer, number)) == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (; holds < number; holds++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(frames, holds), held + holds, PyBUF_SIMPLE) < 0) {
            goto done;
        }
        total += (uint64_t)held[holds].len + (held[holds].len < 256 ? SHORT_HEAD : LONG_HEAD);
    }
    failed = total <= JOINED_BYTES ? append_joined(buffers, held, number, (Py_ssize_t)total)
                                   : append_apart(buffers, frames, held, number);
done:
    while (holds > 0) {
        PyBuffer_Release(held + --holds);
    }
    if (held != at_hand) {
        PyMem_Free(held);
    }
    Py_DECREF(frames);
    return failed ? NULL : PyLong_FromUnsignedLongLong(total);
}

/* --- envelopes: a version byte, and a msgpack array of a code and fields ---------------------------------------- */

enum { MOST_FIELDS = 14, MOST_CODECS = 24, MOST_CODE = 127, HEAD = 3 };

typedef enum { INTEGER = 'i', BINARY = 'b', TEXT = 's' } Kind;

typedef struct {
    Kind kind;
    long long least, most; /* of the number, or of the length in bytes or characters */
    int empty_or_full;     /* whether only these two lengths are allowed */
} Field;

typedef struct {
    uint8_t code;
    int fields;
    Field field[MOST_FIELDS];
    PyObject *last[MOST_FIELDS]; /* the text that was decoded last: most messages name the same model */
} Codec;

typedef struct {
    PyObject_HEAD
    uint8_t version;
    int count;
    PyTypeObject *types[MOST_CODECS]; /* subclasses of tuple; apart from the rest, because they are searched */
    Codec codecs[MOST_CODECS];
    int8_t by_code[MOST_CODE + 1]; /* the place of a code's codec, or -1 */
} Codecs;

static int
clear_codecs(Codecs *self)
{
    for (int place = 0; place < self->count; place++) {
        for (int i = 0; i < MOST_FIELDS; i++) {
            Py_CLEAR(self->codecs[place].last[i]);
        }
        Py_CLEAR(self->types[place]);
    }
    return 0;
}

static int
traverse_codecs(Codecs *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (int place = 0; place < self->count; place++) {
        Py_VISIT(self->types[place]);
    }
    return 0;
}

static void
free_codecs(Codecs *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear_codecs(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int
add_codec(Codecs *self, long code, PyObject *type, PyObject *fields)
{
    if (code < 0 || code > MOST_CODE || self->by_code[code] >= 0 || self->count == MOST_CODECS) {
        PyErr_Format(PyExc_ValueError, "there are at most %d codes, from 0 to %d", MOST_CODECS, MOST_CODE);
        return -1;
    }
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type) || !PyTuple_Check(fields)
        || PyTuple_GET_SIZE(fields) > MOST_FIELDS) {
        PyErr_Format(PyExc_TypeError, "a codec has a subclass of tuple, and a tuple of at most %d fields", MOST_FIELDS);
        return -1;
    }
    Codec *codec = self->codecs + self->count;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(fields); i++) {
        Field *field = codec->field + i;
        int kind;
        if (!PyTuple_Check(PyTuple_GET_ITEM(fields, i))) {
            PyErr_SetString(PyExc_TypeError, "a field is a tuple");
            return -1;
        }
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(fields, i), "CLLp", &kind, &field->least, &field->most,
                              &field->empty_or_full)) {
            return -1;
        }
        if (kind != INTEGER && kind != BINARY && kind != TEXT) {
            PyErr_Format(PyExc_ValueError, "a field is of kind i, b or s, not %c", kind);
            return -1;
        }
        field->kind = (Kind)kind;
    }
    codec->code = (uint8_t)code;
    codec->fields = (int)PyTuple_GET_SIZE(fields);
    self->types[self->count] = (PyTypeObject *)Py_NewRef(type);
    self->by_code[code] = (int8_t)self->count++;
    return 0;
}

static PyObject *
new_codecs(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"version", "codecs", NULL};
    unsigned char version;
    PyObject *given, *key, *value;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "bO!", names, &version, &PyDict_Type, &given)) {
        return NULL;
    }
    Codecs *self = (Codecs *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->version = version;
    memset(self->by_code, -1, sizeof self->by_code);
    Py_ssize_t position = 0;
    while (PyDict_Next(given, &position, &key, &value)) {
        PyObject *cls, *fields;
        const long code = PyLong_AsLong(key);
        if (code == -1 && PyErr_Occurred()) {
            Py_DECREF(self);
            return NULL;
        }
        if (!PyTuple_Check(value)) {
            PyErr_SetString(PyExc_TypeError, "a code has a class and fields, in a tuple");
            Py_DECREF(self);
            return NULL;
        }
        if (!PyArg_ParseTuple(value, "OO", &cls, &fields)
            || add_codec(self, code, cls, fields) < 0) {
            Py_DECREF(self);
            return NULL;
        }
    }
    return (PyObject *)self;
}

/* Whether a length or a number is allowed. */
static int
allowed(const Field *field, long long value)
{
    return value >= field->least && value <= field->most
           && !(field->empty_or_full && value != 0 && value != field->most);
}

/* Reads a number from `*at`. 0 if there is none that fits in a long long. */
static int
read_integer(const uint8_t **at, const uint8_t *stop, long long *value)
{
    const uint8_t first = *(*at)++;
    if (first < 0x80 || first >= 0xe0) {
        *value = (int8_t)first;
        return 1;
    }
    if (first < 0xcc || first > 0xd3) {
        return 0;
    }
    const int bytes = 1 << ((first - 0xcc) & 3);
    if (stop - *at < bytes) {
        return 0;
    }
    const uint64_t found = read_big_endian(*at, bytes);
    *at += bytes;
    if (first <= 0xcf) {
        *value = (long long)found;
        return found <= INT64_MAX;
    }
    const int unused = 64 - 8 * bytes;
    *value = (int64_t)(found << unused) >> unused;
    return 1;
}

/* Reads the length of bytes or of a text from `*at`. -1 if there is none, or if there are fewer bytes. */
static Py_ssize_t
read_length(Kind kind, const uint8_t **at, const uint8_t *stop)
{
    const uint8_t first = *(*at)++;
    const uint8_t one = kind == TEXT ? 0xd9 : 0xc4;
    Py_ssize_t length = -1;
    if (kind == TEXT && (first & 0xe0) == 0xa0) {
        length = first & 0x1f;
    }
    else if (first == one && stop - *at >= 1) {
        length = *(*at)++;
    }
    else if (first == one + 1 && stop - *at >= 2) {
        length = (Py_ssize_t)read_big_endian(*at, 2);
        *at += 2;
    }
    return length <= stop - *at ? length : -1;
}

static PyObject *
text_of(Codec *codec, int i, const uint8_t *data, Py_ssize_t length)
{
#ifndef Py_GIL_DISABLED
    PyObject *last = codec->last[i];
    if (last != NULL) {
        Py_ssize_t size;
        const char *known = PyUnicode_AsUTF8AndSize(last, &size);
        if (known != NULL && size == length && memcmp(known, data, (size_t)size) == 0) {
            return Py_NewRef(last);
        }
        PyErr_Clear();
    }
#endif
    PyObject *text = PyUnicode_DecodeUTF8((const char *)data, length, NULL);
#ifndef Py_GIL_DISABLED
    if (text != NULL) {
        Py_XSETREF(codec->last[i], Py_NewRef(text));
    }
#endif
    return text;
}

/* Reads a field from `*at`. NULL, without an error or with one that is to be dropped, if it is not as usual. */
static PyObject *
read_field(Codec *codec, int i, const uint8_t **at, const uint8_t *stop)
{
    const Field *field = codec->field + i;
    if (*at == stop) {
        return NULL;
    }
    if (field->kind == INTEGER) {
        long long value;
        return read_integer(at, stop, &value) && allowed(field, value) ? PyLong_FromLongLong(value) : NULL;
    }
    const Py_ssize_t length = read_length(field->kind, at, stop);
    if (length < 0) {
        return NULL;
    }
    const uint8_t *data = *at;
    *at += length;
    if (field->kind == BINARY) {
        return allowed(field, length) ? PyBytes_FromStringAndSize((const char *)data, length) : NULL;
    }
    PyObject *text = text_of(codec, i, data, length);
    if (text != NULL && !allowed(field, PyUnicode_GET_LENGTH(text))) {
        Py_CLEAR(text);
    }
    return text;
}

PyDoc_STRVAR(decode_doc,
"decode(frame) -> tuple | None\n\n"
"The message of an envelope. None if it is not one of these messages, or is wrong, or is written in an unusual way.");

static PyObject *
decode(Codecs *self, PyObject *frame)
{
    if (!PyBytes_CheckExact(frame) || PyBytes_GET_SIZE(frame) < HEAD) {
        Py_RETURN_NONE;
    }
    const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(frame), *stop = at + PyBytes_GET_SIZE(frame);
    if (at[0] != self->version || at[2] > MOST_CODE || self->by_code[at[2]] < 0) {
        Py_RETURN_NONE;
    }
    const int place = self->by_code[at[2]];
    PyTypeObject *type = self->types[place];
    Codec *codec = self->codecs + place;
    if (at[1] != 0x91 + codec->fields) {
        Py_RETURN_NONE;
    }
    PyObject *message = type->tp_alloc(type, codec->fields);
    if (message == NULL) {
        return NULL;
    }
    at += HEAD;
    for (int i = 0; i < codec->fields; i++) {
        PyObject *value = read_field(codec, i, &at, stop);
        if (value == NULL) {
            PyErr_Clear();
            Py_DECREF(message);
            Py_RETURN_NONE;
        }
        PyTuple_SET_ITEM(message, i, value);
    }
    if (at != stop) {
        Py_DECREF(message);
        Py_RETURN_NONE;
    }
    return message;
}

static uint8_t *
write_integer(uint8_t *at, long long value)
{
    if (value >= -32 && value < 128) {
        *at++ = (uint8_t)value;
        return at;
    }
    int size = 0; /* the power of two of its bytes */
    if (value < 0) {
        size = value >= INT8_MIN ? 0 : value >= INT16_MIN ? 1 : value >= INT32_MIN ? 2 : 3;
        *at++ = (uint8_t)(0xd0 + size);
    }
    else {
        size = value <= UINT8_MAX ? 0 : value <= UINT16_MAX ? 1 : value <= (long long)UINT32_MAX ? 2 : 3;
        *at++ = (uint8_t)(0xcc + size);
    }
    write_big_endian(at, (uint64_t)value, 1 << size);
    return at + (1 << size);
}

enum { MOST_HEAD = 9, MOST_ENVELOPE = 4096 };

/* Writes bytes or a text with its head to `at`. NULL if there is no room. */
static uint8_t *
write_data(Kind kind, uint8_t *at, const uint8_t *stop, const char *data, Py_ssize_t length)
{
    if (length > UINT16_MAX || length + MOST_HEAD > stop - at) {
        return NULL;
    }
    const uint8_t one = kind == TEXT ? 0xd9 : 0xc4;
    if (kind == TEXT && length < 32) {
        *at++ = (uint8_t)(0xa0 | length);
    }
    else if (length <= UINT8_MAX) {
        *at++ = one;
        *at++ = (uint8_t)length;
    }
    else {
        *at++ = one + 1;
        write_big_endian(at, (uint64_t)length, 2);
        at += 2;
    }
    memcpy(at, data, (size_t)length);
    return at + length;
}

static uint8_t *
write_field(PyObject *value, uint8_t *at, const uint8_t *stop)
{
    if (PyLong_CheckExact(value)) {
        int overflow;
        const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        return overflow || stop - at < MOST_HEAD ? NULL : write_integer(at, number);
    }
    if (PyBytes_CheckExact(value)) {
        return write_data(BINARY, at, stop, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    }
    if (PyUnicode_CheckExact(value)) {
        Py_ssize_t length;
        const char *data = PyUnicode_AsUTF8AndSize(value, &length);
        return data == NULL ? NULL : write_data(TEXT, at, stop, data, length);
    }
    return NULL;
}

PyDoc_STRVAR(encode_doc,
"encode(message) -> bytes | None\n\n"
"The envelope of a message. None if it is not one of these messages, or has an unusual field.");

static PyObject *
encode(Codecs *self, PyObject *message)
{
    int place = 0;
    while (place < self->count && self->types[place] != Py_TYPE(message)) {
        place++;
    }
    if (place == self->count || PyTuple_GET_SIZE(message) != self->codecs[place].fields) {
        Py_RETURN_NONE;
    }
    const Codec *codec = self->codecs + place;
    uint8_t envelope[MOST_ENVELOPE], *at = envelope;
    const uint8_t *stop = envelope + sizeof envelope;
    *at++ = self->version;
    *at++ = (uint8_t)(0x91 + codec->fields);
    *at++ = codec->code;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(message); i++) {
        if ((at = write_field(PyTuple_GET_ITEM(message, i), at, stop)) == NULL) {
            PyErr_Clear();
            Py_RETURN_NONE;
        }
    }
    return PyBytes_FromStringAndSize((const char *)envelope, at - envelope);
}

static PyMethodDef codecs_methods[] = {
    {"decode", (PyCFunction)decode, METH_O, decode_doc},
    {"encode", (PyCFunction)encode, METH_O, encode_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(codecs_doc,
"Codecs(version, {code: (class, ((kind, least, most, empty_or_full), ...)), ...})\n\n"
"Decodes and encodes messages whose fields are numbers, bytes and texts.");

static PyType_Slot codecs_slots[] = {
    {Py_tp_doc, (void *)codecs_doc},
    {Py_tp_new, new_codecs},
    {Py_tp_dealloc, free_codecs},
    {Py_tp_traverse, traverse_codecs},
    {Py_tp_clear, clear_codecs},
    {Py_tp_methods, codecs_methods},
    {0, NULL},
};

static PyType_Spec codecs_spec = {
    .name = "zmq_offload.native.wire.Codecs",
    .basicsize = sizeof(Codecs),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = codecs_slots,
};

/* --- the module ------------------------------------------------------------------------------------------------- */

static int
fill(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &codecs_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    const int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static PyMethodDef methods[] = {
    {"split", (PyCFunction)(void (*)(void))split, METH_FASTCALL, split_doc},
    {"append", (PyCFunction)(void (*)(void))append, METH_FASTCALL, append_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyDoc_STRVAR(module_doc, "What each message needs, compiled. zmq_offload.native chooses it.");

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "zmq_offload.native.wire", .m_doc = module_doc, .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC
PyInit_wire(void)
{
    return PyModuleDef_Init(&definition);
}
