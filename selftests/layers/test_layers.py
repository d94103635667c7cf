#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/layers and scripts/licences notice what they must, and only that. Prints TAP.

Each case is a little tree and the complaints it must get, word for word.
"""
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Headers that includes in the cases below can point at.
HEADERS = ['base/io.h', 'wire/wire.h', 'ram/ram.h', 'dirty/dirty.h', 'dirty/kmod.h',
           'xport/uri.h', 'fault/fault.h', 'store/store.h', 'inject/inject.h', 'event/event.h',
           'guest/guest.h', 'guest/qmp.h', 'engine/state.h', 'agent/agent.h',
           'include/ferry.h', 'port/port.h', 'vmm/vmm.h']

# name: ({file: text}, [complaint])
LAYERS = {
    'accepts_the_ways_down': ({
        'base/a.c': '#include "base/io.h"\n#include <errno.h>\n',
        'ram/a.c': '#include "base/io.h"\n#include "wire/wire.h"\n',
        'xport/a.c': '#include "ram/ram.h"\n#include "xport/uri.h"\n',
        'inject/a.c': '#include <sys/ptrace.h>\n',
        'event/a.c': '#include <libmnl/libmnl.h>\n#include <linux/ferry_netlink.h>\n',
        'dirty/kmod.c': '#include <linux/ferry.h>\n',
        'guest/qemu_run.c': '#include "guest/qmp.h"\n#include "inject/inject.h"\n',
        'engine/a.c': '#include "guest/guest.h"\n#include "store/store.h"\n',
        'agent/a.c': '#include "engine/state.h"\n#include "base/io.h"\n',
        'vmm/a.c': '#include "include/ferry.h"\n',
    }, []),
    'ignores_includes_in_comments': ({
        'base/a.c': '/*\n#include "ram/ram.h"\n */\n// x\n  // #include "ram/ram.h"\n',
    }, []),
    'refuses_base_above_itself': (
        {'base/a.c': '#include "ram/ram.h"\n'},
        ['user/base/a.c:1: includes ram/ram.h: base may not include ram']),
    'refuses_wire_with_base': (
        {'wire/a.c': '\n#include "base/io.h"\n'},
        ['user/wire/a.c:2: includes base/io.h: wire may not include base']),
    'refuses_ram_above_itself': (
        {'ram/a.h': '#include "dirty/dirty.h"\n'},
        ['user/ram/a.h:1: includes dirty/dirty.h: ram may not include dirty']),
    'refuses_peers': ({
        'store/a.c': '#include "xport/uri.h"\n',
        'fault/a.c': '#include "inject/inject.h"\n',
    }, ['user/fault/a.c:1: includes inject/inject.h: fault may not include inject',
        'user/store/a.c:1: includes xport/uri.h: store may not include xport']),
    'refuses_guest_with_engine': (
        {'guest/a.c': '# include   "engine/state.h"\n'},
        ['user/guest/a.c:1: includes engine/state.h: guest may not include engine']),
    'refuses_engine_with_agent': (
        {'engine/a.c': 'int x;\n#include "agent/agent.h"\n'},
        ['user/engine/a.c:2: includes agent/agent.h: engine may not include agent']),
    'refuses_vmm_with_insides': (
        {'vmm/a.c': '#include "port/port.h"\n'},
        ['user/vmm/a.c:1: includes port/port.h: the port protocol belongs to port and guest/port*']),
    'keeps_qmp_in_guest_qemu': ({
        'guest/port.c': '#include "guest/qmp.h"\n',
        'engine/a.c': '#include "guest/qmp.h"\n',
    }, ['user/engine/a.c:1: includes guest/qmp.h: QMP belongs to guest/qemu*',
        'user/guest/port.c:1: includes guest/qmp.h: QMP belongs to guest/qemu*']),
    'keeps_ptrace_in_inject': (
        {'guest/qemu.c': '#include <sys/ptrace.h>\n'},
        ['user/guest/qemu.c:1: includes sys/ptrace.h: ptrace belongs to inject']),
    'keeps_libmnl_in_event': (
        {'agent/a.c': '#include <libmnl/libmnl.h>\n'},
        ['user/agent/a.c:1: includes libmnl/libmnl.h: libmnl belongs to event']),
    'keeps_the_kernel_contract': ({
        'dirty/pagemap.c': '#include "../../uapi/linux/ferry.h"\n',
        'engine/a.c': '#include <linux/ferry.h>\n',
    }, ['user/dirty/pagemap.c:1: includes ../../uapi/linux/ferry.h: '
        'the kernel contract belongs to dirty/kmod and event',
        'user/engine/a.c:1: includes linux/ferry.h: '
        'the kernel contract belongs to dirty/kmod and event']),
    'refuses_ways_around': ({
        'base/a.c': '#include "../ram/ram.h"\n#include "io.h"\n#include "base/gone.h"\n',
    }, ['user/base/a.c:1: includes ../ram/ram.h: write it relative to user/, as in "base/io.h"',
        'user/base/a.c:2: includes io.h: write it relative to user/, as in "base/io.h"',
        'user/base/a.c:3: includes base/gone.h: there is no such file']),
    'refuses_an_unknown_folder': (
        {'util/a.c': 'int x;\n'},
        ['user/util/a.c: its folder has no place in the layers']),
}

AGENT = 'SPDX-License-Identifier: GPL-2.0-or-later'
TEXTS = {'LICENSES/' + t: '' for t in ('GPL-2.0', 'LGPL-2.1', 'Linux-syscall-note')}

LICENCES = {
    'accepts_each_folder_s_own': (dict(TEXTS, **{
        'user/a.c': '// %s\n' % AGENT,
        'user/a.h': '/* %s */\n' % AGENT,
        'scripts/a': '#!/bin/sh\n# %s\n' % AGENT,
        'kmod/a.c': '// SPDX-License-Identifier: GPL-2.0-only\n',
        'uapi/linux/a.h': '/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */\n',
        'user/port/a.c': '// SPDX-License-Identifier: LGPL-2.1-or-later\n',
        'user/include/ferry.h': '/* SPDX-License-Identifier: LGPL-2.1-or-later */\n',
        'Documentation/a.rst': '.. %s\n' % AGENT,
        'Documentation/man/a.1': '.\\" %s\n' % AGENT,
        'README.md': '# ferry\n',
    }), []),
    'refuses_a_file_without': (
        dict(TEXTS, **{'user/a.c': 'int x;\n', 'user/empty.c': ''}),
        ['user/a.c: does not start with an SPDX-License-Identifier line',
         'user/empty.c: does not start with an SPDX-License-Identifier line']),
    'refuses_one_that_comes_late': (
        dict(TEXTS, **{'user/a.c': '\n// %s\n' % AGENT}),
        ['user/a.c: does not start with an SPDX-License-Identifier line']),
    'refuses_another_folder_s': (dict(TEXTS, **{
        'kmod/a.c': '// %s\n' % AGENT,
        'user/a.c': '// SPDX-License-Identifier: GPL-2.0-only\n',
        'user/port/a.c': '// %s\n' % AGENT,
        'uapi/linux/a.h': '/* SPDX-License-Identifier: GPL-2.0-only */\n',
    }), ['kmod/a.c: is GPL-2.0-or-later, but must be GPL-2.0-only',
         'uapi/linux/a.h: is GPL-2.0-only, but must be GPL-2.0-only WITH Linux-syscall-note',
         'user/a.c: is GPL-2.0-only, but must be GPL-2.0-or-later',
         'user/port/a.c: is GPL-2.0-or-later, but must be LGPL-2.1-or-later']),
    'refuses_another_comment': (
        dict(TEXTS, **{'user/a.c': '/* %s */\n' % AGENT, 'user/a.h': '// %s\n' % AGENT}),
        ["user/a.c: writes its SPDX line with another comment than '//'",
         "user/a.h: writes its SPDX line with another comment than '/*'"]),
    'wants_the_texts': (
        {'user/a.c': '// %s\n' % AGENT, 'LICENSES/GPL-2.0': ''},
        ['LICENSES/LGPL-2.1: the text is missing',
         'LICENSES/Linux-syscall-note: the text is missing']),
}


def fill(root, files):
    for name, text in files.items():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as f:
            f.write(text)


def complaints(checker, root):
    done = subprocess.run([os.path.join(ROOT, 'scripts', checker), root], timeout=30,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.stderr:
        return ['stderr: ' + done.stderr]
    if done.returncode != (1 if done.stdout else 0):
        return ['exit status %d after: %s' % (done.returncode, done.stdout)]
    return done.stdout.splitlines()


def cases():
    """Yield (name, checker, files, complaints)."""
    headers = {'user/' + h: '' for h in HEADERS}
    for name, (files, wanted) in LAYERS.items():
        files = {'user/' + inside: text for inside, text in files.items()}
        yield 'layers_' + name, 'layers', dict(headers, **files), wanted
    yield ('layers_refuses_an_empty_tree', 'layers', {'README.md': ''},
           ['%s/user: holds no C file'])
    for name, (files, wanted) in LICENCES.items():
        yield 'licences_' + name, 'licences', files, wanted


def main():
    table = list(cases())
    failed = 0
    print('1..%d' % len(table))
    for number, (name, checker, files, wanted) in enumerate(table, 1):
        with tempfile.TemporaryDirectory() as root:
            fill(root, files)
            wanted = [w.replace('%s', root) for w in wanted]
            seen = complaints(checker, root)
        good = seen == wanted
        failed += not good
        print('%s %d - %s' % ('ok' if good else 'not ok', number, name))
        if not good:
            print(*['# wanted: ' + w for w in wanted], sep='\n')
            print(*['# seen:   ' + s for s in seen], sep='\n')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
