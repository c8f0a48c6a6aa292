"""Stubs of glibc's libraries with the versions of symbols that manylinux_2_28 has.

    python tools/older_glibc.py FOLDER

glibc 2.34 moved libpthread, libdl and librt into libc, and gave their symbols a new version. CUDA's
static runtime takes some of them. Linked against these stubs (LDFLAGS=-LFOLDER), an extension asks
for the old versions, which later glibcs have, too. The versions are those of x86-64.
"""

import subprocess
import sys
from pathlib import Path

# The name for the linker, the name at run time, and the symbols by their first version.
LIBRARIES = {
    "libdl.so": (
        "libdl.so.2",
        {"GLIBC_2.2.5": "dlclose dlerror dlopen dlsym dlvsym", "GLIBC_2.3.4": "dlmopen"},
    ),
    "librt.so": ("librt.so.1", {"GLIBC_2.2.5": "shm_open shm_unlink"}),
    "libpthread.so": (
        "libpthread.so.0",
        {
            "GLIBC_2.2.5": """
                pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific
                pthread_join pthread_key_create pthread_key_delete pthread_kill
                pthread_mutexattr_destroy pthread_mutexattr_init pthread_mutexattr_setpshared
                pthread_mutexattr_settype pthread_mutex_trylock pthread_once
                pthread_rwlockattr_destroy pthread_rwlockattr_init pthread_rwlockattr_setpshared
                pthread_rwlock_destroy pthread_rwlock_init pthread_rwlock_rdlock
                pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock
                pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_rwlock_wrlock
                pthread_setspecific pthread_spin_destroy pthread_spin_init pthread_spin_lock
                pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post
                sem_timedwait sem_trywait sem_wait
            """
        },
    ),
}


def build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for linked, (loaded, versions) in LIBRARIES.items():
        names = [name for listed in versions.values() for name in listed.split()]
        source, script = folder / f"{linked}.c", folder / f"{linked}.map"
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
        nodes = [f"{version} {{ {'; '.join(v.split())}; }};\n" for version, v in versions.items()]
        script.write_text("".join(nodes))
        options = ["-shared", "-nostdlib", "-w", "-fno-builtin", f"-Wl,-soname,{loaded}"]
        command = ["cc", *options, f"-Wl,--version-script={script}", source, "-o", folder / linked]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
