# library.cmake: libweft_cuda.so, where nvcc is found. SASS for sm_80 and sm_90a, PTX for whatever
# else is newer than compute_80.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "libweft_cuda.so is not built: nvcc was not found")
  return()
endif()
enable_language(CUDA)
file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/cuda/*.cu)
set(WEFT_CUDA_ARCHITECTURES "80-real;80-virtual;90a-real" CACHE STRING "what libweft_cuda.so is compiled for")
add_library(weft_cuda SHARED ${CUDA_SOURCES})
add_dependencies(weft_cuda weft_generated)
target_include_directories(weft_cuda PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/core ${WEFT_GENERATED})
set_target_properties(weft_cuda PROPERTIES CUDA_STANDARD 17 CUDA_ARCHITECTURES "${WEFT_CUDA_ARCHITECTURES}"
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} POSITION_INDEPENDENT_CODE ON)
target_compile_options(weft_cuda PRIVATE -O3 --expt-relaxed-constexpr -Xcompiler=-fvisibility=hidden,-Wall
                       -diag-suppress=177)
string(REPLACE ";" ", " built_for "${WEFT_CUDA_ARCHITECTURES}")
set_source_files_properties(${CMAKE_SOURCE_DIR}/cuda/usable.cu PROPERTIES COMPILE_DEFINITIONS "WEFT_CUDA_BUILT_FOR=\"${built_for}\"")
# bits equal to the CPU's
set_source_files_properties(${CMAKE_SOURCE_DIR}/cuda/random.cu ${CMAKE_SOURCE_DIR}/cuda/multinomial.cu PROPERTIES COMPILE_OPTIONS -fmad=false)
target_link_libraries(weft_cuda PRIVATE cublasLt)
target_link_options(weft_cuda PRIVATE -Wl,-z,nodelete,-z,defs)
install(TARGETS weft_cuda LIBRARY DESTINATION ${WEFT_LIBDIR}/weft)
