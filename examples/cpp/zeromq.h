// libzmq's C functions: its own header where it is installed, and otherwise what this example needs of it. The latter is
// for the library alone, as in the wheel of pyzmq; names and numbers are the same since libzmq 4.2.
#pragma once

#if __has_include(<zmq.h>)
#include <zmq.h>
#else
#include <cstddef>

extern "C" {
struct zmq_msg_t {
  alignas(void*) unsigned char content[64];
};
struct zmq_pollitem_t {
  void* socket;
  int fd;
  short events, revents;
};
void* zmq_ctx_new();
int zmq_ctx_term(void* context);
void* zmq_socket(void* context, int type);
int zmq_close(void* socket);
int zmq_setsockopt(void* socket, int option, const void* value, size_t length);
int zmq_connect(void* socket, const char* endpoint);
int zmq_send(void* socket, const void* bytes, size_t length, int flags);
int zmq_poll(zmq_pollitem_t* items, int count, long milliseconds);
int zmq_msg_init(zmq_msg_t* message);
int zmq_msg_recv(zmq_msg_t* message, void* socket, int flags);
void* zmq_msg_data(zmq_msg_t* message);
size_t zmq_msg_size(const zmq_msg_t* message);
int zmq_msg_more(const zmq_msg_t* message);
int zmq_msg_close(zmq_msg_t* message);
int zmq_errno();
const char* zmq_strerror(int number);
}
enum { ZMQ_DEALER = 5, ZMQ_LINGER = 17, ZMQ_SNDTIMEO = 28, ZMQ_HEARTBEAT_IVL = 75, ZMQ_HEARTBEAT_TIMEOUT = 77 };
enum { ZMQ_DONTWAIT = 1, ZMQ_SNDMORE = 2, ZMQ_POLLIN = 1 };
#endif
