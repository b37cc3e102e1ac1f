"""Tensors that processes of one user on one machine pass to each other without copying them. Linux only.

The modules `spans`, `cells`, `layout` and `references` are pure; `segment`, `arena`, `readers` and `host` ask the
kernel.

A process that sends large tensors has an **arena**: memory of its own without a name (memfd). It is divided into
**cells**, each with one tensor or message. Others open it as /proc/PID/fd/N and read. A **reference** says where a
tensor lies; it travels in a message in place of the bytes.

Who may change what, and why no reader ever sees wrong bytes:

- Only the owner writes to cells. A reader maps them for reading only, and has one byte in each cell's head to write:
  that it came.
- A reader **pins** a cell before it reads: it takes a read lock of the kernel (of an open file description) for the
  cell, and only then looks at the cell's generation. If that is not the reference's, the tensor is gone, and the reader
  says so. The owner uses a cell again only after it had the write lock, and raises the generation while it holds it. So
  either the reader is first, and the owner finds the lock; or the owner is first, and the reader finds another
  generation. The kernel orders both, on every CPU.
- A reader that dies, however that happens, loses its locks. No process ids are compared that might have been used
  again. A reader that is stopped keeps what it has pinned, and nothing more; the owner goes on with the rest, and sends
  the bytes themselves when the arena is full.
- Two readers of one cell, or two tensors of one reader in it, have two locks. Both have to end before the cell is used
  again.
- The inputs of a call are **lent**: their cell is free when the owner does not use it any more and nobody has pinned
  it. An attempt that comes too late finds another generation and fails; nobody waits for its answer.
- The outputs of a call are **given**: their cell is free when a reader came and went. A message may be lost on its way
  (canceled, undelivered, its reader or the broker killed), and then nobody comes. So a cell that nobody has pinned
  within `cells.TAKE_BACK` is taken back. A reader that comes even later finds another generation: for it the message is
  lost, as if its connection had ended.
- The owner's end does not take memory from those that have mapped it. Who has not opened it yet cannot do so any more:
  the message is lost with its sender. When the last process lets go, the kernel frees the memory; no name is left.
- A process id and descriptor that belong to another arena by now do not match the cookie, 16 random bytes in the
  arena's head and in each reference.
- The size is sealed, so that reading cannot fail with SIGBUS. Readers refuse what is not sealed.
- A child that was forked from the owner has the same arena. It does not use it: `Arena` does nothing there. A child
  forked from a reader shares the reader's locks. It does not give them up; the kernel does when both have ended.
"""
